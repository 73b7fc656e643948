"""A schedule as tables of decisions vary it."""

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
