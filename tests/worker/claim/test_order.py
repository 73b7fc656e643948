"""Which run or fire time a pass takes first, and what must not hide it."""

import pytest
from support.fair import END, Member, scheduler
from support.workers import Parts

from pgsched.worker.upkeep.reconciler import Reconciler


async def take(member: Parts, number: int = 1) -> list:
    """What the next pass claims, with so many places."""
    had = len(member.taken)
    member.taker.allowed = number
    await member.dispatcher.claim_pass()
    return member.taken[had:]


async def test_an_urgent_job_of_another_lane_is_next_when_a_place_is_free(settings, db):
    await db.all("select pgsched.enqueue('plain', priority => -50) from generate_series(1, 160)")
    async with Parts(settings, scheduler(), max_running=4) as parts:
        assert len(await take(parts, 4)) == 4
        for entrypoint in ("thread", "plain"):
            await db.all("select pgsched.enqueue(%s, priority => 100)", entrypoint)
        assert [run.entrypoint for run in await take(parts)] == ["thread"]
        assert [await db.value("select priority from pgsched.runs where id = %s", (await take(parts))[0].id)] == [100]


async def test_fire_times_that_keep_coming_do_not_starve_a_job(settings, db):
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
        " select 's' || n, 'plain', '@every 1s', now() - interval '1 second' from generate_series(1, 8) n"
    )
    job = await db.value("select pgsched.enqueue('plain', due_at => now() - interval '500 ms')")
    async with Parts(settings, scheduler(), max_running=2) as parts:
        taken = []
        for _ in range(6):
            taken += [run.id for run in await take(parts, 2)]
            # Each fire time is due again before the next pass.
            await db.all(
                "update pgsched.schedules set next_run = now() - interval '1 ms', planned_at = clock_timestamp()"
                " where next_run > now()"
            )
            await db.all(END, taken)
        assert job in taken


async def test_a_herd_at_one_instant_leaves_the_first_place_to_the_urgent_job(settings, db):
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run, priority)"
        " select 's' || n, 'plain', '@yearly', now() + interval '5 seconds', -100 from generate_series(1, 150) n"
    )
    job = await db.value(
        "select pgsched.enqueue('plain', priority => 100, due_at => ("
        "select min(next_run) + interval '1 ms' from pgsched.schedules))"
    )
    async with Parts(settings, scheduler(), max_running=60, lookahead="10s") as parts:
        claimed = await take(parts, 60)
    assert len(claimed) == 60
    assert job in [run.id for run in claimed]


async def test_a_claim_ahead_takes_no_place_from_what_is_due(settings, db):
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run, priority)"
        " values ('s', 'plain', '@yearly', now() + interval '5 seconds', 100)"
    )
    job = await db.value("select pgsched.enqueue('plain', priority => -100)")
    async with Parts(settings, scheduler(), max_running=2, lookahead="10s") as parts:
        assert [run.id for run in await take(parts)] == [job]
        assert [run.schedule_id for run in await take(parts)] == [1]


async def test_a_backlog_of_fire_times_starts_no_more_than_there_is_room_for(settings, db):
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run, overlap, catch_up)"
        " values ('s', 'plain', '* * * * * *', date_trunc('second', now()) - interval '20 seconds', 'allow', 'all')"
    )
    async with Parts(settings, scheduler(), max_running=3) as parts:
        first = await take(parts, 3)
        assert len(first) == 3
        following = await take(parts, 3)
    times = [run.fire_time for run in first + following]
    assert len(following) == 3
    assert times == sorted(times), "oldest first, and the others are queued"


async def test_a_new_schedule_is_planned_though_all_places_are_taken(settings, db):
    await db.all("select pgsched.create_schedule('s', 'plain', '@yearly')")
    async with Parts(settings, scheduler(), max_running=2) as parts:
        assert await take(parts, 0) == []
    assert await db.value("select next_run is not null from pgsched.schedules")


async def test_a_run_of_an_entrypoint_that_is_gone_follows_its_schedule(settings, db):
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run, args)"
        " values ('morning', 'plain', '@every 1s', now() - interval '1 ms', '{\"tenant\": \"new\"}')"
    )
    await db.all(
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, due_at, attempt, gated)"
        " select id, 'old', now() - interval '1 minute', now() + interval '5 minutes', 1, true from pgsched.schedules"
    )
    async with Parts(settings, scheduler(), max_running=2) as parts:
        await parts.dispatcher.claim_pass()
        await parts.dispatcher.claim_pass()
    assert [(run.entrypoint, run.args_json, run.attempt) for run in parts.taken] == [("plain", '{"tenant": "new"}', 2)]


async def test_a_run_that_nobody_here_can_do_hides_no_other_of_its_schedule(settings, db):
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
        " values ('s', 'plain', '@yearly', now() + interval '1 hour')"
    )
    await db.all(
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, origin, attempt, gated)"
        " select id, e, now() - n * interval '1 second', 'trigger', a, true"
        " from pgsched.schedules, (values ('old', 1, 2), ('plain', 0, 1)) r (e, a, n)"
    )
    async with Parts(settings, scheduler(), max_running=2) as parts:
        assert [run.entrypoint for run in await take(parts, 2)] == ["plain"]


async def test_a_schedules_backlog_at_a_limit_does_not_hide_what_is_due_later(settings, db):
    """It is longer than what is read of a limit at first."""
    member = Member(settings, (5, 1, 1))
    async with member.kit.control.use() as connection:
        await Reconciler(member.kit).start(connection)
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
        " values ('s', 'limited', '@yearly', now() + interval '1 hour')"
    )
    await db.all("select pgsched.trigger('s') from generate_series(1, 200)")
    await db.all("select pgsched.enqueue('limited', '{\"tenant\": \"b\"}')")
    assert await member.dispatcher.claim_pass() == 2
    await member.__aexit__()


async def test_a_thread_that_outlives_its_run_holds_up_only_its_own_schedule(settings, db):
    """It counts for the overlap: the run that waits for it must not take the place of what can start."""
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
        " values ('s', 'plain', '@yearly', now() + interval '1 hour')"
    )
    await db.all("select pgsched.trigger('s')")
    await db.all(
        "insert into pgsched.left_behind (run_id, token, worker, schedule_id, entrypoint, args, counts_until)"
        " select 1000, 1, gen_random_uuid(), id, 'plain', '{}', now() + interval '1 minute' from pgsched.schedules"
    )
    job = await db.value("select pgsched.enqueue('plain')")
    async with Parts(settings, scheduler(), max_running=2) as parts:
        assert [run.id for run in await take(parts)] == [job]


async def passes(member: Parts, number: int) -> list:
    """What all passes claim that find so many places at first."""
    claimed = await take(member, number)
    while len(claimed) < number and (more := await take(member, number - len(claimed))):
        claimed += more
    return claimed


async def test_a_fire_time_that_was_chosen_before_a_run_that_waits_is_not_skipped_because_of_it(settings, db):
    """If the triggered run were claimed first, it and the run between two attempts would have the two places."""
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run, overlap)"
        " values ('s', 'plain', '@yearly', now() - interval '2 seconds', '2')"
    )
    await db.all(
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, due_at, origin, attempt, gated)"
        " select id, 'plain', now() - n * interval '1 hour', now() - interval '1 second', o, a, true"
        " from pgsched.schedules, (values (1, 'trigger', 0), (2, null, 1)) r (n, o, a) order by n"
    )
    async with Parts(settings, scheduler(), max_running=2) as parts:
        claimed = await passes(parts, 2)
    assert sorted(run.attempt for run in claimed) == [1, 2]
    assert sorted(run.fire_time == run.due_at for run in claimed) == [False, True]
    assert await db.value("select count(*) from pgsched.runs where status = 'skipped'") == 0


@pytest.mark.parametrize(("first", "kinds"), [("fire time", {True, False}), ("run", {False})])
async def test_ahead_of_their_instant_a_fire_time_and_a_run_that_waits_are_claimed_in_their_order(
    settings, db, first, kinds
):
    """A fire time is not claimed ahead beside a run of its schedule: that one may be over by then."""
    await db.all(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run, overlap)"
        " values ('s', 'plain', '@yearly', now() + %s * interval '1 second', '2')",
        6 if first == "fire time" else 8,
    )
    await db.all(
        "insert into pgsched.runs (schedule_id, entrypoint, fire_time, due_at, origin, gated)"
        " select id, 'plain', now(), now() + interval '7 seconds', 'trigger', true from pgsched.schedules"
    )
    async with Parts(settings, scheduler(), max_running=2, lookahead="10s") as parts:
        claimed = await passes(parts, 2)
    assert {run.fire_time == run.due_at for run in claimed} == kinds
    assert await db.value("select count(*) from pgsched.runs where status = 'skipped'") == 0
