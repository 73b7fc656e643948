"""What is found, and the story of the rows concerned: their changes and calls, in order."""

from dataclasses import dataclass
from typing import Any

from model.world import World

DULL = ("updated_at", "created_at", "planned_at", "backoff", "max_backoff", "catch_up_limit")
TRAIL = """
    select at, session, relation, op, row_id, old, new from pgsched.model_trail
    where relation = 'runs' and row_id in ({runs}) or relation = 'schedules' and row_id in ({schedules})
    order by id limit 120
"""
CALLS = """
    select id, run_id, worker, code, attempt, token, began, ended, how from pgsched.model_calls
    where run_id in ({runs}) order by id
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """An invariant that does not hold, the rows that break it, and the story of some of them."""

    name: str
    rows: list[dict[str, Any]]
    story: list[str]

    def __str__(self) -> str:
        rows = "\n".join(f"    {row}" for row in self.rows[:10])
        more = f"\n    … {len(self.rows)} in all" if len(self.rows) > 10 else ""
        return f"{self.name}\n{rows}{more}\n" + "\n".join(f"      {line}" for line in self.story)


async def finding(world: World, name: str, rows: list[dict[str, Any]]) -> Finding:
    """A finding with the story of the first runs and schedules concerned."""
    runs = [row["run_id"] for row in rows if row.get("run_id") is not None][:2]
    for row in rows[:2]:
        runs += [run for run in row.get("runs", []) if run not in runs]
    schedules = [row["schedule_id"] for row in rows[:2] if row.get("schedule_id") is not None][:1]
    return Finding(name, rows, await _story(world, runs, schedules))


async def _story(world: World, runs: list[int], schedules: list[int]) -> list[str]:
    """What happened to some runs and schedules, in seconds after the start."""
    ids = {name: ",".join(map(str, found or [0])) for name, found in (("runs", runs), ("schedules", schedules))}
    lines = []
    for row in await world.look(TRAIL.format(**ids)):
        lines.append((row["at"], f"{row['session'][:16]}: {row['op'].lower()} {row['relation']} {row['row_id']} "
                      f"{_changed(row['old'] or {}, row['new'] or {})}"))  # fmt: skip
    for row in await world.look(CALLS.format(**ids)):
        who = f"pgsched {str(row['worker'])[:8]}"
        lines.append((row["began"], f"{who}: CALL {row['id']} of run {row['run_id']} attempt {row['attempt']}"))
        if row["ended"]:
            lines.append((row["ended"], f"{who}: END of call {row['id']} ({row['how']})"))
    return [f"{(at - world.began).total_seconds():8.3f}  {text}" for at, text in sorted(lines, key=lambda x: x[0])]


def _changed(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The columns whose values a change brought, without those that say nothing to people."""
    empty: tuple[Any, ...] = (None, [], {}, False)
    found = {k: v for k, v in new.items() if k not in DULL and old.get(k) != v and v not in empty}
    return found | {k: None for k, v in new.items() if v is None and old.get(k) is not None}
