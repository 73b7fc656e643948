"""Every fire time is a run or a recorded skip: what clients do to a schedule, and downtimes, on the real tables."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from support.workers import Parts, working

from pgsched import Run, Scheduler

MINUTE = timedelta(minutes=1)

# Every minute, half a minute away from now; workers have not been there for ten of them: next_run is the first.
MADE = """
    insert into pgsched.schedules (name, entrypoint, expression, next_run, accounted_through, timed_at, created_at)
    select 's', 'job', '* * * * * ' || extract(second from t)::int, t, t - interval '1 minute', t - interval '1 hour',
        t - interval '1 hour'
    from (select date_trunc('second', now()) - interval '9 minutes 30 seconds' as t) x
    returning next_run
"""
# As if it had happened earlier: what a worker writes counts as no client's change.
EARLIER = "planned_at = clock_timestamp()"
SKIPS = """
    select reason, extract(epoch from fire_time - %s)::float / 60, extract(epoch from skipped_through - %s)::float / 60,
        skipped_count, detail
    from pgsched.runs where status = 'skipped' order by fire_time
"""


class Story:
    """One schedule whose first open fire time was ten fire times ago (number 0), and what became of them."""

    def __init__(self, db, settings, first):
        self.db, self.settings, self.first = db, settings, first

    def at(self, minute: float) -> datetime:
        return self.first + minute * MINUTE

    async def does(self, statement: str, *params: object) -> None:
        await self.db.all(statement, *params)

    async def earlier(self, **columns: object) -> None:
        """Sets columns as they would be, had a client acted at that time."""
        sets = ", ".join(f"{name} = %s" for name in columns)
        await self.db.all(f"update pgsched.schedules set {EARLIER}, {sets}", *columns.values())

    async def recorded(self) -> tuple[list[float], list[tuple]]:
        """The fire times that run and the skips, after passes until nothing is due; runs are ended at once."""
        async with Parts(self.settings) as parts:
            for _ in range(20):
                await parts.dispatcher.claim_pass()
                await self.db.all(
                    "update pgsched.runs set status = 'succeeded', finished_at = now() where status = 'running'"
                )
        runs = await self.db.all(
            "select extract(epoch from fire_time - %s)::float / 60 from pgsched.runs where status <> 'skipped'"
            " order by fire_time", self.first,
        )  # fmt: skip
        skips = await self.db.all(SKIPS, self.first, self.first)
        return [row[0] for row in runs], skips


@pytest.fixture
async def story(db, settings) -> Story:
    first = (await db.one(MADE))[0]
    return Story(db, settings, first.astimezone(UTC))


MISSED = "no worker claimed it in time; catch_up is latest"
BEFORE = "no worker claimed it before the schedule was paused"
CHANGED = "its timing was changed before a worker claimed it"


async def test_a_downtime(story):
    assert await story.recorded() == ([9], [("missed", 0, 8, 9, MISSED)])


async def test_a_pause(story):
    await story.does("select pgsched.pause('s', 'until the audit is over')")
    await story.earlier(paused_at=story.at(3.5))
    assert await story.recorded() == ([], []), "a paused schedule is left alone"
    await story.does("select pgsched.resume('s')")
    assert await story.recorded() == (
        [], [("missed", 0, 3, 4, BEFORE), ("paused", 4, 9, 6, "until the audit is over")],
    )  # fmt: skip


async def test_a_pause_whose_backlog_is_asked_for_at_its_end(story):
    await story.does("select pgsched.pause('s')")
    await story.earlier(paused_at=story.at(3.5))
    await story.does("select pgsched.resume('s', backlog => true)")
    assert await story.recorded() == ([9], [("missed", 0, 8, 9, MISSED)])


async def test_a_pause_whose_backlog_is_asked_for_at_its_beginning(story):
    await story.does("select pgsched.pause('s', backlog => true)")
    await story.earlier(paused_at=story.at(3.5), catch_up="all")
    await story.does("select pgsched.resume('s')")
    assert await story.recorded() == (list(range(10)), [])
    assert await story.db.value("select backlog from pgsched.schedules") is False, "asked for once"


async def test_a_backlog_can_be_declined_at_the_end(story):
    await story.does("select pgsched.pause('s', backlog => true)")
    await story.earlier(paused_at=story.at(-0.5))
    await story.does("select pgsched.resume('s', false)")
    assert await story.recorded() == ([], [("paused", 0, 9, 10, None)])


async def test_a_pause_that_ends_by_itself_ends_then_though_nobody_was_there(story):
    """Paused through number 4; the workers come back only now, five fire times later."""
    await story.does("select pgsched.pause('s', 'audit', now() + interval '1 hour')")
    await story.earlier(paused_at=story.at(1.5), paused_until=story.at(4.5))
    runs, skips = await story.recorded()
    assert (runs, skips) == (
        [9], [("missed", 0, 1, 2, BEFORE), ("paused", 2, 4, 3, "audit"), ("missed", 5, 8, 4, MISSED)],
    )  # fmt: skip
    assert await story.db.one(
        "select status, note, paused_until, resumed_at = %s from pgsched.schedules", story.at(4.5)
    ) == ("active", None, None, True)


async def test_a_fire_time_at_the_very_end_of_a_pause_runs(story):
    await story.does("select pgsched.pause('s', 'until nine', now() + interval '1 hour')")
    await story.earlier(paused_at=story.at(-1), paused_until=story.at(9))
    assert await story.recorded() == ([9], [("paused", 0, 8, 9, "until nine")])


async def test_two_pauses_before_anybody_looked(story):
    for since, through in ((1.5, 3.5), (5.5, 7.5)):
        await story.does("select pgsched.pause('s', %s)", f"from {since}")
        await story.earlier(paused_at=story.at(since), paused_until=story.at(through))
        await story.does("select pgsched.resume('s')")
    assert await story.recorded() == (
        [9],
        [("missed", 0, 1, 2, BEFORE), ("paused", 2, 3, 2, "from 1.5"), ("missed", 4, 5, 2, BEFORE),
         ("paused", 6, 7, 2, "from 5.5"), ("missed", 8, 8, 1, MISSED)],
    )  # fmt: skip


async def test_a_pause_that_touches_no_fire_time_leaves_no_trace(story):
    await story.earlier(next_run=datetime(2199, 1, 1, tzinfo=UTC))
    await story.does("select pgsched.pause('s')")
    await story.does("select pgsched.resume('s')")
    assert await story.db.one("select interruptions, status from pgsched.schedules") == ([], "active")


async def test_a_new_expression_counts_from_the_change_on(story):
    await story.does("update pgsched.schedules set expression = '@yearly'")
    assert await story.recorded() == ([], [("missed", 0, 9, 10, CHANGED)])
    assert await story.db.value("select next_run > now() and interruptions = '[]' from pgsched.schedules")


async def test_a_new_expression_during_a_pause(story):
    await story.does("select pgsched.pause('s', 'audit')")
    await story.earlier(paused_at=story.at(3.5))
    await story.does("update pgsched.schedules set expression = '@yearly'")
    await story.does("select pgsched.resume('s')")
    assert await story.recorded() == ([], [("missed", 0, 3, 4, BEFORE), ("paused", 4, 9, 6, "audit")])


async def test_changed_and_resumed_in_one_statement(story):
    await story.does("select pgsched.pause('s', 'audit')")
    await story.earlier(paused_at=story.at(3.5))
    await story.does("update pgsched.schedules set expression = '@yearly', status = 'active'")
    assert await story.recorded() == ([], [("missed", 0, 3, 4, BEFORE), ("paused", 4, 9, 6, "audit")])


async def test_changed_back_and_forth_nothing_is_told_twice(story):
    await story.does("update pgsched.schedules set timezone = 'Asia/Tokyo'")
    await story.does("update pgsched.schedules set timezone = 'UTC'")
    runs, skips = await story.recorded()
    assert (runs, skips) == ([], [("missed", 0, 9, 10, CHANGED)])


async def test_an_option_that_is_no_timing_changes_nothing_of_the_account(story):
    await story.does("update pgsched.schedules set args = '{}', priority = 3, catch_up = 'all'")
    assert await story.recorded() == (list(range(10)), [])


async def test_what_lay_before_the_start_is_told_once_it_has_come(story):
    await story.earlier(next_run=None, starts_at=story.at(4.5), accounted_through=None, timed_at=story.at(-0.5))
    assert await story.recorded() == (
        [9], [("bounds", 0, 4, 5, "before its starts_at"), ("missed", 5, 8, 4, MISSED)],
    )  # fmt: skip


async def test_a_start_that_has_not_come_tells_nothing_yet(story):
    await story.earlier(
        next_run=None, starts_at=datetime(2090, 1, 1, tzinfo=UTC), accounted_through=None, timed_at=story.at(-0.5)
    )
    assert await story.recorded() == ([], [])
    assert await story.db.value("select accounted_through is null and next_run > '2089-12-31' from pgsched.schedules")


async def test_an_invalid_schedule_that_is_put_right_goes_on_from_where_it_was(story):
    await story.earlier(status="invalid", next_run=None)
    await story.does("select pgsched.resume('s')")
    assert await story.recorded() == ([9], [("missed", 0, 8, 9, MISSED)])


async def test_a_claim_ahead_that_is_taken_back_leaves_its_fire_time_open(db, settings):
    """Paused between the claim and the instant, for longer than that: it is told as paused."""
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
        " values ('s', 'job', '@yearly', now() + interval '900 milliseconds')"
    )
    async with Parts(settings) as parts:
        assert await parts.dispatcher.claim_pass() == 1
        claimed = parts.taken[0].fire_time
        await db.all("select pgsched.pause('s', 'audit')")
        assert await parts.answer() == 1
        assert await db.one(
            "select next_run = %s, accounted_through < %s, run_count from pgsched.schedules", claimed, claimed
        ) == (True, True, 0)
        await db.until("select clock_timestamp() > %s", claimed)
        await db.all("select pgsched.resume('s')")
        assert await parts.dispatcher.claim_pass() == 0
    assert await db.all("select status, reason, fire_time, detail from pgsched.runs") == [
        ("skipped", "paused", claimed, "audit")
    ]


async def test_next_run_set_back_by_hand_makes_no_second_run_and_tells_no_skip_twice(story):
    before = await story.recorded()
    await story.earlier(next_run=story.at(0))
    assert await story.recorded() == before


async def test_next_run_set_back_to_a_live_fire_time_is_not_skipped_because_of_itself(story):
    async with Parts(story.settings) as parts:
        assert await parts.dispatcher.claim_pass() == 1
        await story.does("update pgsched.runs set started_at = clock_timestamp() where status = 'running'")
        await story.does("update pgsched.schedules set next_run = %s", story.at(9))
        for _ in range(3):
            await parts.dispatcher.claim_pass()
    assert await story.db.all(SKIPS, story.first, story.first) == [("missed", 0, 8, 9, MISSED)]
    assert await story.db.value("select count(*) from pgsched.runs where status <> 'skipped'") == 1


@pytest.mark.parametrize("catch_up", ["latest", "all", "none"])
async def test_next_run_set_back_over_fire_times_that_have_run_records_none_of_them_as_missed(story, catch_up):
    await story.earlier(catch_up="all")
    before = await story.recorded()
    assert before == (list(range(10)), [])
    await story.earlier(catch_up=catch_up)
    await story.does("update pgsched.schedules set next_run = %s", story.at(6))
    assert await story.recorded() == before


# --- the downtime matrix ------------------------------------------------------------------------------------

OVERLAPS = ["skip", "queue", "allow", "cancel", "2"]
CATCH_UPS = ["latest", "all", "none"]
GRACES = [None, 20]
LENGTHS = [1, 2, 15, 90, 400_000]  # fire times, one a minute
LIMIT = 50  # of catch_up all


def expected(catch_up: str, grace: int | None, length: int) -> tuple[set[int], int]:
    """Which of the fire times 0 to length - 1 run, the newest half a minute old, and how many are missed."""
    fresh = [n for n in range(length) if grace is None or length - 1 - n + 0.5 < grace]
    if catch_up == "all":
        runs = set(fresh[-LIMIT:])
    elif catch_up == "none" and grace is None:
        runs = set()
    else:
        runs = set(fresh[-1:])
    return runs, length - len(runs)


@pytest.mark.parametrize("workers", [1, 3])
async def test_downtimes(settings, db, workers):
    """Every policy, over every length of downtime: all of it is accounted for, and what runs is what should."""
    cases = list(itertools.product(OVERLAPS, CATCH_UPS, GRACES, LENGTHS))
    for overlap, catch_up, grace, length in cases:
        await db.all(
            """
            insert into pgsched.schedules (name, entrypoint, expression, overlap, catch_up, catch_up_limit, grace,
                                           next_run, ends_at)
            select %s, 'job', '* * * * * ' || extract(second from t)::int, %s, %s, %s, %s * interval '1 minute',
                t - %s * interval '1 minute', t
            from (select date_trunc('second', now()) - interval '30 seconds' as t) x
            """,
            f"{overlap} {catch_up} {grace} {length}", overlap, catch_up, LIMIT, grace, length - 1,
        )  # fmt: skip
    executed: list[tuple[str, datetime]] = []

    def scheduler() -> Scheduler:
        sc = Scheduler()

        @sc.entrypoint("job")
        async def job(run: Run):
            executed.append((run.schedule.name, run.fire_time))

        return sc

    settings = settings.merged({"stall_timeout": timedelta(seconds=30)}, "test")
    async with working(scheduler(), settings):
        for _ in range(workers - 1):
            await db.all("select pg_notify(%s, '')", settings.schema)
        others = [working(scheduler(), settings) for _ in range(workers - 1)]
        for other in others:
            await other.__aenter__()
        await db.until(
            "select (select count(*) from pgsched.schedules where status <> 'finished')"
            " + (select count(*) from pgsched.runs where status in ('queued', 'running')) = 0", limit=60,
        )  # fmt: skip
        for other in others:
            await other.__aexit__(None, None, None)
    assert len(executed) == len(set(executed)), "a fire time ran twice"
    for overlap, catch_up, grace, length in cases:
        name = f"{overlap} {catch_up} {grace} {length}"
        (last,) = await db.one("select ends_at from pgsched.schedules where name = %s", name)
        rows = await db.all(
            "select r.status, r.reason, r.fire_time, r.skipped_through, r.skipped_count from pgsched.runs r"
            " join pgsched.schedules s on s.id = r.schedule_id where s.name = %s order by r.fire_time", name,
        )  # fmt: skip
        runs, missed = expected(catch_up, grace, length)
        number = {row[2]: length - 1 - round((last - row[2]) / MINUTE) for row in rows}
        assert {number[row[2]] for row in rows if row[0] == "succeeded"} == runs, name
        skips = [row for row in rows if row[0] == "skipped"]
        assert {row[1] for row in skips} <= {"missed"}, name
        assert sum(row[4] for row in skips) == missed, name
        covered = set(runs)
        for _, _, first, through, count in skips:
            assert round((through - first) / MINUTE) == count - 1, name
            span = range(number[first], number[first] + count)
            assert covered.isdisjoint(span), name
            covered.update(span)
        assert covered == set(range(length)), name


async def test_a_fire_time_that_ran_between_two_changes_is_not_skipped_by_the_second(story):
    # The first change left next_run to be planned; number 4 had been claimed under the timing before, and ran.
    await story.does("update pgsched.schedules set max_runs = 1000")
    await story.earlier(timed_at=story.at(3.5), interruptions="[]")
    await story.does(
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, due_at, status, finished_at)"
        " select id, 'job', %s, %s, 'succeeded', now() from pgsched.schedules", story.at(4), story.at(4),
    )  # fmt: skip
    await story.does("update pgsched.schedules set max_runs = 2000")
    runs, skips = await story.recorded()
    assert runs == [4, *runs[1:]]
    assert [(reason, first, last, count) for reason, first, last, count, _ in skips] == [("missed", 5, 9, 5)]


async def test_a_claim_that_a_change_withdrew_and_that_ran_unheard_is_not_skipped(story):
    # At 3.5 number 4 was claimed ahead. The change withdrew it, but it began before its holder heard of that, and ended
    # before anybody planned.
    await story.earlier(timed_at=story.at(3.5), interruptions="[]", accounted_through=None, next_run=None)
    await story.does(
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, due_at, status, finished_at)"
        " select id, 'job', %s, %s, 'succeeded', now() from pgsched.schedules", story.at(4), story.at(4),
    )  # fmt: skip
    runs, skips = await story.recorded()
    assert runs[0] == 4
    assert min(first for _, first, *_ in skips) == 5
