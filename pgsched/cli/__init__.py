"""The command line: its commands, and the exit codes for how they ended.

Each command is in the module of its name. Exit codes: 0 done, 1 failure, 2 usage, 3 not found,
4 unhealthy, 69 database unavailable, 78 wrong configuration, 130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click
import psycopg

from pgsched.cli.show.output import OutputLostError, complain
from pgsched.db.mishaps import one_line
from pgsched.errors import PgschedError

_COMMANDS = {
    "run": "Run the scheduler that a factory builds.",
    "migrate": "Bring the database's schema to this version.",
    "check": "Show what a deploy would change.",
    "schedules": "Look at schedules and change them.",
    "trigger": "Run a schedule now (also: schedules trigger).",
    "runs": "Look at runs, cancel them, retry them.",
    "workers": "Show the workers that are alive.",
    "next": "Show when an expression fires.",
    "health": "Check whether everything is well.",
    "import-crontab": "Turn a crontab into schedules.",
}
INTERRUPTED = 130


class _Commands(click.Group):
    """Imports a command when it is asked for, and turns how it ends into an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        # The module has the command's name and keeps the command under the same one.
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"pgsched.cli.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> None:
        """Runs a command and exits. A user's mistake never shows a traceback."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a name may have letters that this terminal lacks
                stream.reconfigure(errors="backslashreplace")
        extra["standalone_mode"] = False
        sys.exit(_end(lambda: super(_Commands, self).main(args, prog_name or "pgsched", **extra)))


def _end(run: Callable[[], Any]) -> int:
    """Runs a command, reports its error if there is one, and returns the exit code."""
    try:
        result = run()
        return result if isinstance(result, int) else 0
    except OutputLostError as error:
        return _without_output(error)
    except OSError as error:  # click's own --help and --version; any other error should show its traceback
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EFBIG) or error.filename is not None:
            raise
        return _without_output(OutputLostError(error))
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (PgschedError, psycopg.Error, UnicodeEncodeError) as error:
        code, message = _explained(error)
        complain(message)
        return code


def _explained(error: Exception) -> tuple[int, str]:
    if isinstance(error, PgschedError):
        return error.exit_code, str(error)
    if isinstance(error, psycopg.Error):
        return 1, f"The database refused: {one_line(error)}."
    return 2, "An argument holds bytes that are not text in this locale: pass it in the locale's encoding."


def _without_output(error: OutputLostError) -> int:
    # Buffered output cannot be written, and the interpreter would try once more when it exits.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.reason is None:  # a reader that has seen enough, as in `| head`, is not a failure
        return 0
    complain(f"The output cannot be written: {error.reason}.")
    return 1


@click.group(
    "pgsched", cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(None, "--version", package_name="pgsched", message="%(package)s %(version)s")
def cli() -> None:
    """A scheduler daemon on PostgreSQL.

    The database comes from --dsn, PGSCHED_DSN or libpq's own environment (PGHOST, PGSERVICE, …). If none of them is
    set, pgsched starts an embedded PostgreSQL. Every setting can also be set in pgsched.toml or as PGSCHED_NAME.
    """


def main() -> None:
    """The console script."""
    cli()
