"""What became of a schedule's fire times, or will: the answer to "why did it not run at T?". Pure.

Reads rows as the client gives them; what daylight saving does to a fire time is daylight's to tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pgsched.errors import InvalidExpression
from pgsched.expression.daylight import mark
from pgsched.expression.duration import format_duration
from pgsched.expression.expression import Expression, parse
from pgsched.rules.ledger import TICK, interruptions_of

Row = Mapping[str, Any]

MOST = 200  # fire times that are told at most
_LIVE = ("queued", "running")


@dataclass(frozen=True, slots=True)
class Situation:
    """What holds now: the database's clock, whether a live worker knows the entrypoint, the schedule's live runs.

    refused: why the database refuses to have the schedule planned."""

    now: datetime
    served: bool = True
    live: tuple[int, ...] = ()
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Fate:
    """One fire time and what became of it.

    state: "ran", "live", "skipped", "due", "coming", "none" (it will not run, or nothing is known of it).
    mark: what daylight saving does to it. run_ids: its runs, the newest last.
    """

    fire_time: datetime
    state: str
    sentence: str
    mark: str | None = None
    run_ids: tuple[int, ...] = ()


def expression_of(row: Row) -> Expression:
    """The schedule's expression. Raises InvalidExpression."""
    anchor = row["starts_at"] or row["created_at"]
    return parse(row["expression"], row["timezone"], name=row["name"], anchor=anchor)


def fates(row: Row, records: Sequence[Row], situation: Situation, start: datetime, through: datetime) -> list[Fate]:
    """The fire times from `start` through `through`, as the expression names them and as they are recorded.

    At most MOST. Before the present timing held, only what is recorded is known.
    """
    times: set[datetime] = {r["fire_time"] for r in records if start <= r["fire_time"] <= through}
    marks: dict[datetime, str | None] = {}
    try:
        expression = expression_of(row)
        after = start - TICK if expression.kind == "at" else max(start - TICK, row["timed_at"])
        coming = expression.next(after)
        while coming is not None and coming <= through and len(marks) < MOST:
            times.add(coming)
            marks[coming] = mark(expression, coming)
            coming = expression.next(coming)
    except InvalidExpression:  # what is recorded is told all the same
        pass
    return [_fate(row, records, situation, time, marks.get(time)) for time in sorted(times)[:MOST]]


def _fate(row: Row, records: Iterable[Row], situation: Situation, time: datetime, mark: str | None) -> Fate:
    runs = [r for r in records if r["status"] != "skipped" and r["fire_time"] == time]
    skips = [
        r for r in records
        if r["status"] == "skipped" and r["fire_time"] <= time <= (r["skipped_through"] or r["fire_time"])
    ]  # fmt: skip
    told = [_skip(skip) for skip in skips[-1:]] + [_run(run) for run in runs]
    if runs:
        state = "live" if runs[-1]["status"] in _LIVE else "ran"
        return Fate(time, state, ". ".join(told), mark, tuple(run["id"] for run in runs))
    if skips:
        return Fate(time, "skipped", told[0], mark)
    return Fate(time, *_unrecorded(row, situation, time), mark)


def _run(run: Row) -> str:
    asked = {"trigger": ", triggered by hand", "backfill": ", backfilled"}.get(run["origin"] or "", "")
    what = f"Run {run['id']}{asked}"
    attempt = f"attempt {run['attempt']}" + (f" of {run['max_attempts']}" if run["max_attempts"] else "")
    started = f", started {_at(run['started_at'])}" if run["started_at"] else ""
    status = run["status"]
    if status == "queued":
        if run["attempt"]:
            return f"{what} failed and is tried again at {_at(run['due_at'])} ({attempt} was the last)"
        return f"{what} is queued, due {_at(run['due_at'])}"
    if status == "running":
        return f"{what} is running ({attempt}{started}) on worker {run['worker']}"
    took = ""
    if run["started_at"] and run["finished_at"]:
        took = f", took {_length(run['finished_at'] - run['started_at'])}"
    why = f": {run['reason'] or _first_line(run['error'])}" if run["reason"] or run["error"] else ""
    why = "" if status == "succeeded" and not run["reason"] else why
    return f"{what} {status} ({attempt}{started}{took}){why}"


def _skip(skip: Row) -> str:
    words = {
        "overlap": "Skipped: an earlier run was live",
        "missed": "Missed",
        "paused": "Skipped: the schedule was paused",
        "bounds": "Skipped: before the schedule's start",
        "retired": "Skipped: its application did not declare the schedule",
    }.get(skip["reason"] or "", f"Skipped: {skip['reason']}")
    detail = f" ({skip['detail']})" if skip["detail"] else ""
    count = skip["skipped_count"] or 1
    among = f", as one of {count} from {_at(skip['fire_time'])} through {_at(skip['skipped_through'])}"
    return f"{words}{detail}{among if count > 1 else ''}; recorded {_at(skip['finished_at'])}"


def _unrecorded(row: Row, situation: Situation, time: datetime) -> tuple[str, str]:
    """The state and the sentence of a fire time of which no row tells."""
    if bound := _outside(row, time):
        return "none", bound
    if time > situation.now:
        return _coming(row, time)
    if row["accounted_through"] is not None and time <= row["accounted_through"]:
        return "none", "Nothing is recorded of it any more: ended runs are deleted after a while (retention)"
    if row["status"] in ("finished", "invalid"):
        return "none", f"The schedule is {row['status']}: {row['note'] or 'nobody said why'}"
    return "due", _paused(row, time) or _waiting(row, situation)


def _paused(row: Row, time: datetime) -> str | None:
    """What a pause makes of a fire time that has passed and is not decided yet."""
    if row["status"] == "paused" and not (row["paused_until"] and time >= row["paused_until"]):
        since, note = _at(row["paused_at"]), _noted(row["note"])
        then = "treated by its catch-up" if row["backlog"] else "recorded as skipped"
        if row["paused_at"] and time < row["paused_at"]:
            return f"No worker claimed it before the schedule was paused at {since}{note}: it will be {then}"
        return f"The schedule is paused since {since}{note}: once it is resumed, this is {then}"
    for stretch in interruptions_of(row["interruptions"]):
        if stretch.kind == "paused" and stretch.since <= time <= stretch.through:
            return f"The schedule was paused then{_noted(stretch.note)}: the next worker records it as skipped"
    return None


def _noted(note: str | None) -> str:
    return f" ({note})" if note else ""


def _outside(row: Row, time: datetime) -> str | None:
    if row["starts_at"] is not None and time < row["starts_at"]:
        return f"It lies before the schedule's start, {_at(row['starts_at'])}"
    if row["ends_at"] is not None and time > row["ends_at"]:
        return f"It lies after the schedule's end, {_at(row['ends_at'])}"
    return None


def _coming(row: Row, time: datetime) -> tuple[str, str]:
    if row["status"] in ("finished", "invalid"):
        return "none", f"It will not run: the schedule is {row['status']}: {row['note'] or 'nobody said why'}"
    if row["status"] == "paused":
        until = row["paused_until"]
        if until is None or time < until:
            ends = f" until {_at(until)}" if until else ""
            return (
                "none",
                f"It will not run unless the schedule is resumed before: it is paused{ends}{_noted(row['note'])}",
            )
    left = None if row["max_runs"] is None else row["max_runs"] - row["run_count"]
    limit = f", if its last {left} {'run is' if left == 1 else 'runs are'} not used up by then" if left else ""
    return "coming", f"It will run then{limit}"


def _waiting(row: Row, situation: Situation) -> str:
    if not situation.served:
        return f"It is due, and no live worker knows the entrypoint {row['entrypoint']!r}: start one that does"
    if situation.refused is not None:
        return f"It is due, but the database refuses to change the schedule: {situation.refused}"
    if situation.live:
        ids = ", ".join(map(str, situation.live[:3])) + (", …" if len(situation.live) > 3 else "")
        return (
            f"It is due, and waits: run {ids} of the schedule is live"
            if len(situation.live) == 1
            else (f"It is due, and waits: runs {ids} of the schedule are live")
        )
    return "It is due: a worker is about to claim it, or has no free slot"


def around(row: Row, start: datetime, through: datetime) -> tuple[datetime | None, datetime | None]:
    """The expression's last fire time before a stretch without any, and the first after it."""
    try:
        expression = expression_of(row)
    except InvalidExpression:
        return None, None
    before = expression.latest(start - timedelta(days=3660), start - TICK)
    return before, expression.next(through)


def _at(instant: datetime | None) -> str:
    if instant is None:
        return "an unknown time"
    millis = f".{instant.microsecond // 1000:03}" if instant.microsecond >= 1000 else ""
    return f"{instant:%Y-%m-%d %H:%M:%S}{millis}Z"


def _length(length: timedelta) -> str:
    length = max(length, timedelta(0))
    if length < timedelta(minutes=1):
        return f"{length.total_seconds():.3f}s"
    return format_duration(timedelta(seconds=round(length.total_seconds())))


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n")[0]
