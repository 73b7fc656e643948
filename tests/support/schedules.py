"""A schedule as tables of decisions vary it, and its interruptions. Minutes count from nine o'clock."""

from datetime import UTC, datetime, timedelta

from pgsched.model import Schedule

NINE = datetime(2027, 1, 4, 9, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
BASE = Schedule(
    id=1, name="s", entrypoint="e", expression="* * * * *", timezone="UTC", args_json="{}", overlap="skip",
    catch_up="latest", catch_up_limit=1000, grace=None, jitter=timedelta(0), timeout=None, max_attempts=None,
    backoff=None, max_backoff=None, starts_at=None, ends_at=None, max_runs=None, run_count=0, priority=0,
    status="active", note=None, paused_at=None, resumed_at=None, paused_until=None, owner="api", next_run=NINE,
    last_run=None, last_status=None, accounted_through=None, timed_at=NINE - MINUTE / 2, interruptions_json=None,
    created_at=NINE - timedelta(days=1), updated_at=NINE - MINUTE / 2,
)  # fmt: skip
# A timing that has ended, as the entry of a change describes it.
OTHER_TIMING = {
    "accounted_through": None, "next_run": NINE, "expression": "*/2 * * * *", "timezone": "UTC",
    "starts_at": None, "ends_at": None,
}  # fmt: skip


def at(minute: float) -> datetime:
    return NINE + minute * MINUTE


def interrupted(kind: str, since: float, through: float, **rest) -> dict:
    rest = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in rest.items()}
    return {"kind": kind, "since": at(since).isoformat(), "through": at(through).isoformat(), **rest}


def paused(since: float, through: float, note: str | None = None) -> dict:
    return interrupted("paused", since, through, note=note)
