"""The fate of a schedule's fire times, past and future: the answer to "why did it not run at T?". Pure.

Reads rows as the client returns them; daylight decides the effects of daylight saving.
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
from pgsched.expression.instants import TICK
from pgsched.rules.ledger import interruptions_of

Row = Mapping[str, Any]

MOST = 200  # fire times in one answer, at most
_LIVE = ("queued", "running")


@dataclass(frozen=True, slots=True)
class Situation:
    """The present state of a schedule's surroundings.

    now: the database's clock.
    served: whether a live worker knows the entrypoint.
    live: the schedule's live runs.
    refused: why the database refuses to have the schedule planned, or None.
    """

    now: datetime
    served: bool = True
    live: tuple[int, ...] = ()
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Fate:
    """One fire time and its fate.

    state: "ran", "live", "skipped", "due", "coming", or "none" (it will not run, or nothing is known about it).
    mark: the effect of daylight saving on it.
    run_ids: its runs, the newest last.
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
    """The fire times from `start` through `through`, both those of the expression and the recorded ones.

    At most MOST. From before the current timing, only recorded fire times are known.
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
    except InvalidExpression:  # recorded fire times are still returned
        pass
    return [_fate(row, records, situation, time, marks.get(time)) for time in sorted(times)[:MOST]]


def _fate(row: Row, records: Iterable[Row], situation: Situation, time: datetime, mark: str | None) -> Fate:
    runs = [r for r in records if r["status"] != "skipped" and r["fire_time"] == time]
    skips = [
        r for r in records
        if r["status"] == "skipped" and r["fire_time"] <= time <= (r["skipped_through"] or r["fire_time"])
    ]  # fmt: skip
    sentences = [_skip(skip) for skip in skips[-1:]] + [_run(run) for run in runs]
    if runs:
        state = "live" if runs[-1]["status"] in _LIVE else "ran"
        return Fate(time, state, ". ".join(sentences), mark, tuple(run["id"] for run in runs))
    if skips:
        return Fate(time, "skipped", sentences[0], mark)
    return Fate(time, *_unrecorded(row, situation, time), mark)


def _run(run: Row) -> str:
    asked = {"trigger": ", triggered by hand", "backfill": ", backfilled"}.get(run["origin"] or "", "")
    subject = f"Run {run['id']}{asked}"
    attempt = f"attempt {run['attempt']}" + (f" of {run['max_attempts']}" if run["max_attempts"] else "")
    started = f", started {_at(run['started_at'])}" if run["started_at"] else ""
    status = run["status"]
    if status == "queued":
        if run["attempt"]:
            return f"{subject} failed and will be tried again at {_at(run['due_at'])} ({attempt} was the last)"
        return f"{subject} is queued, due {_at(run['due_at'])}"
    if status == "running":
        return f"{subject} is running ({attempt}{started}) on worker {run['worker']}"
    took = ""
    if run["started_at"] and run["finished_at"]:
        took = f", took {_length(run['finished_at'] - run['started_at'])}"
    why = f": {run['reason'] or _first_line(run['error'])}" if run["reason"] or run["error"] else ""
    why = "" if status == "succeeded" and not run["reason"] else why
    return f"{subject} {status} ({attempt}{started}{took}){why}"


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
    """The state and the sentence of a fire time without a row."""
    if bound := _outside(row, time):
        return "none", bound
    if time > situation.now:
        return _coming(row, time)
    if row["accounted_through"] is not None and time <= row["accounted_through"]:
        return "none", "Its record is gone: ended runs are deleted after a while (see the setting retention)"
    if row["status"] in ("finished", "invalid"):
        return "none", f"The schedule is {row['status']}: {row['note'] or 'no reason was given'}"
    return "due", _paused(row, time) or _waiting(row, situation)


def _paused(row: Row, time: datetime) -> str | None:
    """The sentence about a fire time that has passed, is not decided yet, and fell into a pause; else None."""
    if row["status"] == "paused" and not (row["paused_until"] and time >= row["paused_until"]):
        since, note = _at(row["paused_at"]), _noted(row["note"])
        then = "treated as missed, by its catch_up" if row["backlog"] else "recorded as skipped"
        if row["paused_at"] and time < row["paused_at"]:
            return f"No worker claimed it before the schedule was paused at {since}{note}: it will be {then}"
        return (
            f"The schedule has been paused since {since}{note}: this fire time will be {then} when the schedule resumes"
        )
    for stretch in interruptions_of(row["interruptions"]):
        if stretch.kind == "paused" and stretch.since <= time <= stretch.through:
            return f"The schedule was paused then{_noted(stretch.note)}: the next worker will record it as skipped"
    return None


def _noted(note: str | None) -> str:
    return f" ({note})" if note else ""


def _outside(row: Row, time: datetime) -> str | None:
    if row["starts_at"] is not None and time < row["starts_at"]:
        return f"It is before the schedule's start, {_at(row['starts_at'])}"
    if row["ends_at"] is not None and time > row["ends_at"]:
        return f"It is after the schedule's end, {_at(row['ends_at'])}"
    return None


def _coming(row: Row, time: datetime) -> tuple[str, str]:
    if row["status"] in ("finished", "invalid"):
        return "none", f"It will not run: the schedule is {row['status']}: {row['note'] or 'no reason was given'}"
    if row["status"] == "paused":
        until = row["paused_until"]
        if until is None or time < until:
            ends = f" until {_at(until)}" if until else ""
            return (
                "none",
                f"It will not run unless the schedule is resumed first: it is paused{ends}{_noted(row['note'])}",
            )
    left = None if row["max_runs"] is None else row["max_runs"] - row["run_count"]
    limit = f", if its last {left} {'run is' if left == 1 else 'runs are'} not used up by then" if left else ""
    return "coming", f"It will run then{limit}"


def _waiting(row: Row, situation: Situation) -> str:
    if not situation.served:
        return f"It is due, but no live worker knows the entrypoint {row['entrypoint']!r}: start one that does"
    if situation.refused is not None:
        return f"It is due, but the database refuses to change the schedule: {situation.refused}"
    if situation.live:
        ids = ", ".join(map(str, situation.live[:3])) + (", …" if len(situation.live) > 3 else "")
        return (
            f"It is due, but waits: run {ids} of the schedule is live"
            if len(situation.live) == 1
            else (f"It is due, but waits: runs {ids} of the schedule are live")
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
