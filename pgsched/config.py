"""Settings: their names, sources and allowed values.

A setting has the same name everywhere: `--stall-timeout`, `PGSCHED_STALL_TIMEOUT`, `stall_timeout` in
pgsched.toml and as a keyword of Scheduler. The flag wins over the environment, the environment over the
file, the file over the code, and the code over the default.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from pgsched.errors import ConfigurationError, InvalidExpression
from pgsched.expression.duration import format_duration, parse_duration

FILE = "pgsched.toml"
_CENTURY = 36500 * 86400  # in seconds
_SUCCEEDED = timedelta(days=7)
LIBPQ = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGPORT", "PGDATABASE", "PGUSER")


def _setting(default: Any, read: Callable[[Any], Any], about: str) -> Any:
    return field(default=default, metadata={"read": read, "help": about})


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a non-empty text")
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    return value


def _schema(value: Any) -> str:
    name = _text(value)
    if len(name.encode(errors="replace")) > 63 or any(ord(c) < 32 for c in name) or name.startswith("pg_"):
        raise ValueError("must have at most 63 bytes, no control characters, and not start with pg_")
    return name


def _count(value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError("must be a whole number of 1 or more")
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise ValueError("must be a whole number of 1 or more") from None
    if not 1 <= number <= 1_000_000:
        raise ValueError("must be between 1 and 1000000")
    return number


def _duration(least: float, most: float) -> Callable[[Any], timedelta]:
    def read(value: Any) -> timedelta:
        if isinstance(value, timedelta):
            length = value
        else:
            try:
                if isinstance(value, bool):
                    raise InvalidExpression
                length = parse_duration(str(value))
            except InvalidExpression:
                raise ValueError("must be a duration such as 500ms, 30s, 5m, 2h, or a number of seconds") from None
        if not least <= length.total_seconds() <= most:
            shown = [format_duration(timedelta(seconds=s)) if s else "0" for s in (least, most)]
            raise ValueError(f"must be between {shown[0]} and {shown[1]}")
        return length

    return read


def _one_of(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or value.lower() not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return value.lower()

    return read


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a worker, checked. Durations are timedeltas."""

    dsn: str | None = _setting(None, _text, "The database, as a URI or as libpq's key=value pairs.")
    listen_dsn: str | None = _setting(None, _text, "The server's own address for LISTEN, if dsn leads to a pooler.")
    schema: str = _setting("pgsched", _schema, "The schema that holds pgsched's tables.")
    max_running: int = _setting(1000, _count, "How many runs a worker has at once.")
    max_threads: int = _setting(32, _count, "How many synchronous functions a worker runs at once, in threads.")
    max_processes: int | None = _setting(
        None, _count, "How many runs with a ProcessExecutor a worker has at once; default: one per processor."
    )
    max_commands: int = _setting(32, _count, "How many commands a worker runs at once.")
    max_transactions: int = _setting(
        10,
        _count,
        "How many connections run.transaction() may use at once in coroutines, and as many again in threads.",
    )
    heartbeat_interval: timedelta = _setting(
        timedelta(seconds=1), _duration(0.05, 3600), "How often a worker renews the claims of its runs."
    )
    stall_timeout: timedelta = _setting(
        timedelta(seconds=30),
        _duration(0.2, 86400),
        "A run whose heartbeat is older than this is taken away from its worker.",
    )
    drain_timeout: timedelta = _setting(
        timedelta(seconds=30), _duration(0, 7 * 86400), "How long a worker that stops waits for its runs to finish."
    )
    cancel_timeout: timedelta = _setting(
        timedelta(seconds=5),
        _duration(0, 3600),
        "How long a cancelled run may take to end before it is left behind, or its process is killed.",
    )
    hook_timeout: timedelta = _setting(
        timedelta(seconds=5), _duration(0.05, 300), "How long a hook may take before it is cancelled."
    )
    resync_interval: timedelta = _setting(
        timedelta(seconds=60),
        _duration(0, 3600),
        "How often an idle worker checks the database without a notification; 0: never.",
    )
    lookahead: timedelta = _setting(
        timedelta(seconds=1), _duration(0, 10), "How long before a fire time its run may be claimed."
    )
    retention: timedelta = _setting(
        timedelta(days=30), _duration(60, _CENTURY), "How long ended runs and their logs are kept."
    )
    retention_succeeded: timedelta | None = _setting(
        None, _duration(60, _CENTURY), "How long succeeded runs are kept; default: 7 days, or retention if shorter."
    )
    retention_failed: timedelta | None = _setting(
        None, _duration(60, _CENTURY), "How long failed runs are kept; default: as retention."
    )
    retention_cancelled: timedelta | None = _setting(
        None, _duration(60, _CENTURY), "How long cancelled runs are kept; default: as retention."
    )
    retention_skipped: timedelta | None = _setting(
        None, _duration(60, _CENTURY), "How long skipped fire times are kept; default: as retention."
    )
    block_limit: timedelta = _setting(
        timedelta(minutes=5), _duration(1, 86400), "How long a worker with a blocked event loop keeps its claims."
    )
    log_level: str = _setting("info", _one_of("debug", "info", "warning", "error"), "The least serious events to log.")
    log_format: str = _setting("auto", _one_of("auto", "json", "console"), "auto: console on a terminal, else JSON.")
    data_dir: str | None = _setting(None, _text, "The directory of the embedded PostgreSQL's data.")
    health_file: str | None = _setting(
        None, _text, "The file that a worker keeps fresh to show `pgsched health --live` that it is alive."
    )

    def merged(self, values: Mapping[str, Any], source: str) -> Settings:
        """These settings with others laid over them. Raises ConfigurationError that names every problem."""
        problems: list[str] = []
        good: dict[str, Any] = {}
        known = {f.name: f for f in fields(self)}
        for name, value in values.items():
            if name not in known:
                problems.append(f"{source}: there is no setting {name!r}; the settings are {', '.join(known)}.")
            elif value is not None:
                try:
                    good[name] = known[name].metadata["read"](value)
                except ValueError as error:
                    shown = "(not shown)" if name.endswith("dsn") else repr(value)
                    problems.append(f"{source}: {name} {error}, not {shown}.")
        if problems:
            raise ConfigurationError("\n".join(problems))
        return replace(self, **good)

    def check(self) -> Settings:
        """Returns itself. Raises ConfigurationError if settings contradict each other."""
        if self.heartbeat_interval * 4 > self.stall_timeout:
            raise ConfigurationError(
                f"heartbeat_interval ({format_duration(self.heartbeat_interval)}) must be at most a quarter of "
                f"stall_timeout ({format_duration(self.stall_timeout)}): a few lost beats must not cost a claim."
            )
        return self

    @property
    def ages(self) -> dict[str, timedelta]:
        """How long runs are kept after their end, by status."""
        return {
            "succeeded": self.retention_succeeded or min(self.retention, _SUCCEEDED),
            "failed": self.retention_failed or self.retention,
            "cancelled": self.retention_cancelled or self.retention,
            "skipped": self.retention_skipped or self.retention,
        }

    @property
    def names_a_database(self) -> bool:
        """Whether a DSN or libpq's own environment names a database."""
        return self.dsn is not None or any(os.environ.get(name) for name in LIBPQ)


def load(
    flags: Mapping[str, Any] | None = None,
    code: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    file: str | None = None,
) -> Settings:
    """Reads all sources in their order. Raises ConfigurationError with one line per problem."""
    environment = os.environ if environment is None else environment
    problems: list[str] = []
    settings = Settings()
    sources: list[tuple[str, Callable[[], Mapping[str, Any]]]] = [
        ("Scheduler", lambda: code or {}),
        (file or FILE, lambda: _read_file(file)),
        ("environment", lambda: _read_environment(environment)),
        ("command line", lambda: flags or {}),
    ]
    for source, read in sources:
        try:
            settings = settings.merged(read(), source)
        except ConfigurationError as error:
            problems.append(str(error))
    if problems:
        raise ConfigurationError("\n".join(problems))
    return settings.check()


def _read_environment(environment: Mapping[str, str]) -> dict[str, str]:
    names = {f"PGSCHED_{f.name.upper()}": f.name for f in fields(Settings)}
    return {names[key]: value for key, value in environment.items() if key in names and value != ""}


def _read_file(named: str | None) -> dict[str, Any]:
    path = Path(named or FILE)
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        if named is None:
            return {}
        raise ConfigurationError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: is not TOML: {error}.") from None
