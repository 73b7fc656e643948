"""Reads crontabs: each line becomes a command with its time and environment, a remark, or a problem. Pure.

As cron reads them (crontab(5) of cronie and Debian): settings apply to the lines below them, an unescaped % ends the
command and begins its standard input, times are read in CRON_TZ. Times themselves mean the same in pgsched as in cron.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from pgsched.errors import InvalidExpression
from pgsched.expression.expression import parse
from pgsched.expression.zones import check_timezone

_SETTING = re.compile(r"""\s*(?:"([^"=]+)"|'([^'=]+)'|([A-Za-z_]\w*))\s*=\s*(.*)""", re.ASCII)
_SPLIT = re.compile(r"&&|\|\||[;|]")
_TARGETS = re.compile(r"\d?[<>]+&?\s*\S*")
_PREPARING = ("cd", "test", "[", "sleep", "export", "set", ".", "source")  # commands before the one that counts
_LEADING = ("exec", "nice", "sudo", "env", "nohup", "time")  # words before the program that counts
_LONGEST = 60  # characters of a name that comes from a command
_WRAPS = re.compile(r"\b(?:mon|tue|wed|thu|fri|sat|[1-6])-sun\b", re.IGNORECASE)
_BACKGROUND = re.compile(r"(?<![&>|\\])&\s*$")
_MAIL = "output is kept with each run instead of being mailed"
_IGNORED = {
    "MAILTO": _MAIL,
    "MAILFROM": _MAIL,
    "RANDOM_DELAY": "it is not imported; a schedule's jitter does that",
    "START_HOURS_RANGE": "it is not imported",
}


@dataclass(frozen=True, slots=True)
class Job:
    """A line that becomes a schedule. args: for the entrypoint that runs commands. user: in a system crontab."""

    line: int
    name: str
    expression: str
    timezone: str
    args: dict[str, Any]
    user: str | None = None

    @property
    def command(self) -> str:
        """The text for the shell."""
        return str(self.args["argv"])


@dataclass(frozen=True, slots=True)
class Note:
    """A remark or a problem of a line."""

    line: int
    text: str


@dataclass(slots=True)
class Crontab:
    """A crontab that was read. problems: lines that cannot be imported. remarks: losses and differences."""

    jobs: list[Job] = field(default_factory=list)
    problems: list[Note] = field(default_factory=list)
    remarks: list[Note] = field(default_factory=list)


def read(text: str, *, timezone: str = "UTC", prefix: str = "", user_column: bool = False) -> Crontab:
    """Reads a crontab.

    timezone: for lines without a CRON_TZ above them.
    user_column: each line names a user before the command, as in /etc/crontab.

    Raises InvalidExpression for an unknown timezone; problems in the text are returned line by line.
    """
    check_timezone(timezone)
    reader = _Reader(timezone, prefix, user_column)
    for number, line in enumerate(text.split("\n"), 1):
        written = line.strip(" \t\r")
        if written and not written.startswith("#"):
            try:
                reader.take(number, written)
            except InvalidExpression as error:
                reader.found.problems.append(Note(number, str(error)))
    return reader.found


class _Reader:
    def __init__(self, timezone: str, prefix: str, user_column: bool) -> None:
        self.found = Crontab()
        self._timezone: str | None = timezone
        self._prefix = prefix
        self._user_column = user_column
        self._settings: dict[str, str] = {}
        self._names: set[str] = set()

    def take(self, number: int, line: str) -> None:
        if (setting := _SETTING.match(line)) is not None:
            name = next(filter(None, setting.groups()[:3]))
            self._set(number, name, _unquoted(setting[4].strip()))
            return
        expression, rest = _times(line)
        if self._timezone is None:
            raise InvalidExpression(
                "the CRON_TZ above it is not a time zone, so its times mean nothing: correct CRON_TZ"
            )
        user = None
        if self._user_column:
            user, rest = _first(rest)
        command, stdin = _parted(rest)
        if not command:
            raise InvalidExpression("there is no command" + (" after the user" if self._user_column else ""))
        name = self._name(command)
        parse(expression, self._timezone, name=name)
        self._remark(number, expression, command)
        self._names.add(name)
        self.found.jobs.append(Job(number, name, expression, self._timezone, self._args(command, stdin), user))

    def _remark(self, number: int, expression: str, command: str) -> None:
        if (wraps := _WRAPS.search(expression)) is not None:
            text = f"{wraps[0]} is a range to Sunday: Debian's cron counts Sunday as 0 there and never ran this line"
            self.found.remarks.append(Note(number, text))
        if command.startswith("*"):
            self.found.remarks.append(Note(number, "its command begins with *: is that a sixth time field?"))
        if _BACKGROUND.search(command):
            self.found.remarks.append(
                Note(number, "the & at its end sends it to the background, and it is killed as soon as its shell ends")
            )
        if not self._user_column and _first(command)[0] == "root":
            self.found.remarks.append(
                Note(number, "root is taken for the program, not for a user: if it is a user, add --user-column")
            )

    def _set(self, number: int, name: str, value: str) -> None:
        if name in _IGNORED:
            self.found.remarks.append(Note(number, f"{name} is ignored: {_IGNORED[name]}"))
        elif name == "CRON_TZ":
            self._timezone = None
            check_timezone(value)
            self._timezone = value
            text = "CRON_TZ moves the lines below it here and in cronie; Debian's cron and systemd-cron never heeded it"
            self.found.remarks.append(Note(number, text))
        else:
            self._settings[name] = value
            if name == "TZ":
                self.found.remarks.append(Note(number, "TZ is given to the commands; only CRON_TZ moves their times"))

    def _args(self, command: str, stdin: str | None) -> dict[str, Any]:
        args: dict[str, Any] = {"argv": command, "shell": self._settings.get("SHELL") or True}
        if self._settings:
            args["env"] = dict(self._settings)
        if home := self._settings.get("HOME"):
            args["cwd"] = home  # cron starts a command there
        if stdin is not None:
            args["stdin"] = stdin
        return args

    def _name(self, command: str) -> str:
        plain = self._prefix + name_for(command)
        name, number = plain, 2
        while name in self._names:
            name, number = f"{plain}-{number}", number + 1
        return name


def _times(line: str) -> tuple[str, str]:
    """The time of a line, and the rest."""
    if line.startswith("@"):
        macro, rest = _first(line)
        if macro.lower() == "@reboot":
            raise InvalidExpression(
                "@reboot is not a time: let systemd, or the service that starts the worker, start this command"
            )
        return macro, rest
    if line.startswith("-"):  # cronie: do not log it
        line = line[1:]
    words = line.split(None, 5)
    if len(words) < 5:
        raise InvalidExpression("it is neither a setting nor five time fields and a command")
    return " ".join(words[:5]), words[5] if len(words) > 5 else ""


def _first(text: str) -> tuple[str, str]:
    """The first word, and the rest."""
    word, rest = [*text.split(None, 1), "", ""][:2]
    return word, rest


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'" else value


def _parted(text: str) -> tuple[str, str | None]:
    r"""The command and its standard input, split at the first %. \% is a %, each further % a newline."""
    command, *more = re.split(r"(?<!\\)%", text)
    stdin = "\n".join(more) if more else None
    if stdin is not None and not stdin.endswith("\n"):
        stdin += "\n"
    return command.replace("\\%", "%").strip(), None if stdin is None else stdin.replace("\\%", "%")


def name_for(command: str) -> str:
    """A readable name for a command: its program and arguments, without paths and redirections."""
    prepared = "command"
    for part in _SPLIT.split(command):
        words = [word.strip("()'\"`{}") for word in _TARGETS.sub(" ", part).split()]
        words = [word.rstrip("/").rsplit("/", 1)[-1] for word in words if word and "=" not in word.split("/")[0]]
        while words and words[0] in _LEADING:
            words = words[1:]
        name = re.sub(r"[^\w.@+]+", "-", " ".join(words)).strip("-.")[:_LONGEST].rstrip("-.")
        if words and words[0] in _PREPARING:
            prepared = name or prepared
        elif name:
            return name
    return prepared  # it does nothing else
