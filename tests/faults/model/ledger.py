"""Which fire times must be accounted for: read from the trail of a schedule's timings, compared with runs and skips.

A timing counts from the instant of the change that brought it (timed_at) through that of the next. Schedules whose
next_run a client has set are left out: then its word counts, not the expression's.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pgsched.errors import InvalidExpression
from pgsched.expression.expression import parse

TICK = timedelta(microseconds=1)
NEVER = datetime(1970, 1, 1, tzinfo=UTC)
TIMING = ("expression", "timezone", "starts_at", "ends_at", "timed_at", "max_runs")
Row = dict[str, Any]

TRAIL = """
    select t.row_id, t.op, t.at, t.session, t.old, t.new from pgsched.model_trail t
    where t.relation = 'schedules' and not coalesce(t.new, t.old) -> 'args' ? 'refuse' order by t.id
"""
MADE = """
    select schedule_id, fire_time as first, coalesce(skipped_through, fire_time) as last, status
    from pgsched.runs where schedule_id is not null and (origin is null or origin = 'backfill' and again = 0)
    union
    select schedule_id, fire_time, fire_time, 'gone' from pgsched.model_born b
    where schedule_id is not null and origin is null and not exists (select from pgsched.runs r where r.id = b.id)
"""
MOVED = "select id from pgsched.model_moved"


def read(text: Any) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if isinstance(text, str) else None


@dataclass(slots=True)
class Timing:
    """A timing of a schedule, and through when its fire times had to be decided."""

    row: Row
    since: datetime
    through: datetime

    def times(self) -> Iterator[datetime]:
        """The fire times that count."""
        row = self.row
        starts, ends = read(row["starts_at"]), read(row["ends_at"])
        created = read(row["created_at"])
        assert created is not None
        try:
            expression = parse(row["expression"], row["timezone"], name=row["name"], anchor=starts or created)
        except InvalidExpression:
            return
        after = self.since
        if row["expression"].startswith("@at"):
            after = datetime(1970, 1, 1, tzinfo=UTC)
        if starts is not None:
            after = max(after, starts - TICK)
        through = self.through if ends is None else min(self.through, ends)
        while (found := expression.next(after)) is not None and found <= through:
            yield found
            after = found


@dataclass(slots=True)
class Life:
    """A schedule from its making to its end."""

    timings: list[Timing] = field(default_factory=list)
    row: Row = field(default_factory=dict)
    removed: datetime | None = None


def lives(trail: list[Row]) -> dict[int, Life]:
    """The lives of all schedules, from their trail."""
    found: dict[int, Life] = {}
    for note in trail:
        life = found.setdefault(note["row_id"], Life())
        if note["op"] == "DELETE":
            life.row, life.removed = note["old"], note["at"]
            continue
        life.row = note["new"]
        if note["op"] == "INSERT" or any(note["old"][name] != note["new"][name] for name in TIMING):
            since = read(note["new"]["timed_at"])
            assert since is not None
            if life.timings:
                _end(life.timings[-1], note["old"], since)
            life.timings.append(Timing(note["new"], since, since))
    for life in found.values():
        if life.timings:
            _end(life.timings[-1], life.row, life.removed)
    return found


def _end(timing: Timing, last: Row, at: datetime | None) -> None:
    """The fire times of a timing had to be decided through the instant of its end: as far as there were any to be had,
    and, if nothing followed, as far as the schedule says that it has come."""
    if last["status"] == "invalid":
        timing.through = timing.since
    elif last["status"] == "finished":
        used_up = last["max_runs"] is not None and last["run_count"] >= last["max_runs"]
        through = read(last["last_run"]) if used_up else read(last["accounted_through"])
        # Of a schedule whose runs were used up before this timing, nothing counts any more.
        timing.through = through if through and (not used_up or through > timing.since) else NEVER
    elif at is None or last["next_run"] is None:
        come = read(last["next_run"])
        timing.through = timing.since if come is None else come - TICK
    else:
        timing.through = at
    if at is not None:
        timing.through = min(timing.through, at)


def _undecided(row: Row) -> datetime:
    """From when on the fire times of a schedule were not decided when it was removed."""
    earlier = [entry for entry in row["interruptions"] if entry["kind"] == "changed"]
    first = earlier[0] if earlier else row
    found = read(first["next_run"]) or read(first.get("since") or row["timed_at"])
    assert found is not None
    return found


def unaccounted(trail: list[Row], made: list[Row], moved: set[int]) -> list[Row]:
    """Fire times that are neither a run nor a recorded skip, and runs of no fire time."""
    found: list[Row] = []
    for schedule, life in lives(trail).items():
        if schedule in moved:
            continue
        rows = [row for row in made if row["schedule_id"] == schedule]
        for timing in life.timings:
            if life.removed is not None:
                undecided = _undecided(life.row)
                # A single instant may lie before its timing, and is decided as little as that.
                timing.through = NEVER if timing.since >= undecided else min(timing.through, undecided - TICK)
            missing = [t for t in timing.times() if not any(row["first"] <= t <= row["last"] for row in rows)]
            found += [
                {"schedule_id": schedule, "name": life.row["name"], "fire_time": time, "expression":
                 timing.row["expression"], "since": timing.since, "through": timing.through}
                for time in missing
            ]  # fmt: skip
        found += [
            {"schedule_id": schedule, "name": life.row["name"], "fire_time": row["first"], "status": row["status"],
             "expressions": [timing.row["expression"] for timing in life.timings]}
            for row in rows if not any(_names(timing, row["first"]) for timing in life.timings)
        ]  # fmt: skip
    return found


def _names(timing: Timing, instant: datetime) -> bool:
    """Whether the expression names the instant, whenever the timing held."""
    row = timing.row
    anchor = read(row["starts_at"]) or read(row["created_at"])
    with contextlib.suppress(InvalidExpression):
        found = parse(row["expression"], row["timezone"], name=row["name"], anchor=anchor)
        return found.next(instant - TICK) == instant
    return False
