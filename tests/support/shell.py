"""The command line in the hands of a test: inside this process, or as a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import psycopg
from click.testing import CliRunner, Result

from pgsched.cli import cli
from pgsched.config import Settings
from pgsched.db.statements.queries import in_schema

_OURS = ("PGSCHED_", "PGHOST", "PGSERVICE", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "NO_COLOR", "COLUMNS")


def isolate(monkeypatch, folder: Path) -> None:
    """No setting of the outside counts, and no pgsched.toml but the test's own."""
    for name in os.environ:
        if name.startswith(_OURS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)


def invoke(*args: object, stdin: str | None = None) -> Result:
    """Runs a command in this process; a bug is raised here."""
    return CliRunner().invoke(cli, [str(arg) for arg in args], input=stdin, catch_exceptions=False)


def spawn(*args: str | bytes, **options) -> subprocess.Popen:
    """Runs a command as a process of its own, its output in pipes unless told otherwise."""
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE) | {"stdin": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", "pgsched", *args], **{**pipes, **options})


class Shell:
    """Commands on a test's database, and plain SQL beside them."""

    def __init__(self, settings: Settings) -> None:
        assert settings.dsn
        self.dsn, self.schema = settings.dsn, settings.schema
        self.where = ("--dsn", self.dsn, "--schema", self.schema)

    def __call__(self, *args: object, stdin: str | None = None) -> Result:
        return invoke(*args, *self.where, stdin=stdin)

    def ok(self, *args: object) -> str:
        """The command's standard output; it has to succeed without a word on standard error."""
        result = self(*args)
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        return result.stdout

    def sql(self, statement: str, *params: object) -> list[tuple]:
        """The rows of a statement that is written for the schema pgsched."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(in_schema(statement.encode(), self.schema), params)
            return cursor.fetchall() if cursor.description else []
