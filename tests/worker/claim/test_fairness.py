"""Which run is next: the claim beside a model that knows nothing of lanes, levels and statements.

The model has all rows before it and goes one by one: of all that may start on this worker now, it takes the first by
what is due, priority, due time, kind and id. Whatever the claim does to find the same, it has to find the same.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import psycopg
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from psycopg.types.json import Jsonb
from support.fair import END, LOOKAHEAD, NEEDS, OWN, Member, used

from pgsched.db.statements.queries import in_schema
from pgsched.executors.executor import Place
from pgsched.worker.upkeep.reconciler import Reconciler

KINDS = ["waiting", "line", "queued", "fire time"]


@dataclass
class World:
    """All rows, as the model sees them, and what of them a worker has."""

    now: datetime
    schedules: dict[int, dict]
    runs: dict[int, dict]
    mine: Counter[str]
    slots: int
    places: dict[Place, int]
    started: list[tuple[str, int]] = field(default_factory=list)

    def startable(self) -> list[tuple]:
        """What may start now: the order, then what it is."""
        if sum(self.mine.values()) >= self.slots:
            return []
        found = []
        for run in self.runs.values():
            if run["status"] != "queued" or not self.fits(run["entrypoint"]) or run["due_at"] > self.now + LOOKAHEAD:
                continue
            owner = self.schedules.get(run["schedule_id"])
            if owner and owner["status"] == "paused" and run["attempt"] == 0 and run["origin"] is None:
                continue
            kind = "line" if run["entrypoint"] == "limited" else "waiting" if run["gated"] else "queued"
            if owner and owner["overlap"] != "allow" and run not in self.first_of(owner, kind):
                continue
            if kind == "line" and not (run["due_at"] <= self.now and self.admits(run["tenant"])):
                continue
            found.append((self.order(run["priority"], run["due_at"], kind, run["id"]), "run", run["id"]))
        for each in self.schedules.values():
            if each["status"] != "active" or not self.fits(each["entrypoint"]) or not self.fires(each):
                continue
            limited = each["entrypoint"] == "limited"
            if limited and not (each["next_run"] <= self.now and self.admits(each["tenant"])):
                continue
            # In line it is a run, made later than all others.
            kind, number = ("line", 2**60 + each["id"]) if limited else ("fire time", each["id"])
            found.append((self.order(each["priority"], each["next_run"], kind, number), "fire time", each["id"]))
        return sorted(found)

    def order(self, priority: int, due_at: datetime, kind: str, number: int) -> tuple:
        return due_at > self.now, -priority, due_at, KINDS.index(kind), number

    def fits(self, entrypoint: str) -> bool:
        if entrypoint not in NEEDS:
            return False
        return self.mine[entrypoint] < OWN.get(entrypoint, 99) and all(
            used(place, self.mine) < self.places[place] for place in NEEDS[entrypoint]
        )

    def running(self, **values) -> int:
        return sum(
            run["status"] == "running" and all(run[k] == v for k, v in values.items()) for run in self.runs.values()
        )

    def admits(self, tenant: str) -> bool:
        return self.running(entrypoint="limited") < 2 and self.running(entrypoint="limited", tenant=tenant) < 1

    def first_of(self, owner: dict, kind: str) -> list[dict]:
        """The runs of a schedule that its overlap leaves room for: those between two attempts come first."""
        room = max(0, self.limit(owner) - self.running(schedule_id=owner["id"]))
        if kind == "line":  # the limits decide which; here it only matters whether there is room
            return list(self.runs.values()) if room else []
        queue = [
            run for run in self.runs.values()
            if run["status"] == "queued" and run["schedule_id"] == owner["id"] and run["entrypoint"] != "unknown"
            and run["entrypoint"] != "limited" and (run["attempt"] > 0 or run["due_at"] <= self.now + LOOKAHEAD)
            and not (owner["status"] == "paused" and run["attempt"] == 0 and run["origin"] is None)
        ]  # fmt: skip
        queue.sort(key=lambda run: (run["attempt"] == 0, -run["priority"], run["due_at"], run["id"]))
        return queue[:room]

    def limit(self, owner: dict) -> int:
        return 99 if owner["overlap"] == "allow" else int(owner["overlap"]) if owner["overlap"].isdecimal() else 1

    def fires(self, each: dict) -> bool:
        """Whether its fire time starts, and neither waits nor is skipped."""
        if each["next_run"] > self.now + LOOKAHEAD:
            return False
        if each["overlap"] == "allow":
            return True
        mine = [run for run in self.runs.values() if run["schedule_id"] == each["id"]]
        if each["next_run"] > self.now and any(run["status"] == "running" for run in mine):
            return False
        running = sum(run["status"] == "running" for run in mine)
        live = sum(run["origin"] is None for run in mine)
        if each["entrypoint"] == "limited":  # it stands in line, beside one that waits there for its next attempt
            return running < self.limit(each) and live < self.limit(each) + (each["overlap"] == "queue")
        return running + sum(run["status"] == "queued" and run["origin"] is None for run in mine) < self.limit(each)

    def start(self) -> bool:
        """Starts the next one."""
        if not (found := self.startable()):
            return False
        _, what, number = found[0]
        self.started.append((what, number))
        if what == "run":
            run = self.runs[number]
            run["status"] = "running"
        else:
            owner = self.schedules[number]
            run = {**owner, "status": "running", "schedule_id": number, "origin": None}
            self.runs[-number] = run
            owner["next_run"] = self.now + timedelta(days=300)
        self.mine[run["entrypoint"]] += 1
        return True


async def world(db, member: Member) -> World:
    cursor = db.cursor(row_factory=psycopg.rows.dict_row)
    schema = member.kit.settings.schema

    async def rows(text: str) -> list[dict]:
        return await (await cursor.execute(in_schema(text.encode(), schema), ())).fetchall()

    schedules = await rows(
        "select id, status, entrypoint, overlap, priority, next_run, coalesce(args ->> 'tenant', '') as tenant"
        " from pgsched.schedules"
    )
    runs = await rows(
        "select id, schedule_id, status, entrypoint, priority, due_at, attempt, origin, gated,"
        " coalesce(args ->> 'tenant', '') as tenant from pgsched.runs where status in ('queued', 'running')"
    )
    now = (await rows("select clock_timestamp() as now"))[0]["now"]
    mine = Counter(run.entrypoint for run in member.taken)
    return World(now, {s["id"]: s for s in schedules}, {r["id"]: r for r in runs}, mine, member.slots, member.places)


ENTRYPOINTS = st.sampled_from(
    ["plain", "plain", "thread", "few", "few threads", "limited", "process", "either", "unknown"]
)
PRIORITIES = st.sampled_from([-5, 0, 0, 0, 7])
DUE = st.integers(-20, -1) | st.sampled_from([20, 30, 40])  # far from now, so that nothing becomes due meanwhile
TENANTS = st.sampled_from(["a", "b"])
JOBS = st.lists(st.tuples(ENTRYPOINTS, PRIORITIES, DUE, TENANTS), max_size=14)
SCHEDULES = st.lists(
    st.tuples(
        ENTRYPOINTS.filter(lambda name: name != "unknown"), PRIORITIES, DUE | st.just(5000), TENANTS,
        st.sampled_from(["skip", "allow", "2", "queue"]),
        st.lists(st.tuples(st.sampled_from(["trigger", "retry", "unknown"]), PRIORITIES, DUE), max_size=4),
        st.sampled_from(["active", "active", "paused"]),
    ),
    max_size=7,
)  # fmt: skip
SIZES = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 2))  # slots, threads, processes


def known(rows: list[tuple], *, crossing: bool) -> list[tuple]:
    """The rows with entrypoints that are there."""
    return [(row[0] if crossing or row[0] not in ("process", "either") else "thread", *row[1:]) for row in rows]


async def fill(db, schema: str, jobs, schedules) -> None:
    async def send(text: str, *params) -> None:
        await db.execute(in_schema(text.encode(), schema), params)

    def table(rows) -> Jsonb:
        return Jsonb([list(row) for row in rows])

    # Where a run has another entrypoint than its schedule, it follows as soon as that is planned.
    schedules = [
        (*each[:2], 5000 if "unknown" in {what for what, _, _ in each[5]} else each[2], *each[3:]) for each in schedules
    ]
    await send("truncate pgsched.runs, pgsched.schedules restart identity cascade")
    await send(
        "select pgsched.enqueue(j ->> 0, jsonb_build_object('tenant', j ->> 3), priority => (j ->> 1)::int,"
        " due_at => now() + (j ->> 2)::int * interval '1 s') from jsonb_array_elements(%s) j",
        table(jobs),
    )
    await send(
        "insert into pgsched.schedules (name, entrypoint, expression, next_run, priority, args, overlap, status)"
        " select 's' || n, j ->> 0, '@yearly', now() + (j ->> 2)::int * interval '1 s', (j ->> 1)::int,"
        " jsonb_build_object('tenant', j ->> 3), j ->> 4, j ->> 6"
        " from jsonb_array_elements(%s) with ordinality e (j, n) order by n",
        table(schedules),
    )
    # What nobody here knows was asked for: a fire time that is live would be waited for.
    runs = [
        (name + 1, "unknown" if what == "unknown" else entrypoint, when, urgency, what, number)
        for name, (entrypoint, _, _, _, _, runs, _) in enumerate(schedules)
        for number, (what, urgency, when) in enumerate(runs)
    ]
    await send(
        "insert into pgsched.runs (schedule_id, entrypoint, args, fire_time, due_at, priority, origin, attempt, gated,"
        " limited_by, line) select s.id, j ->> 1, s.args, '2020-01-01Z'::timestamptz + (j ->> 5)::int * interval '1 s',"
        " now() + (j ->> 2)::int * interval '1 s', (j ->> 3)::int, nullif(j ->> 4, 'retry'),"
        " (j ->> 4 = 'retry')::int, s.overlap <> 'allow' or l.app is not null, l.app,"
        " case when l.app is not null then pgsched.line_for(j ->> 1, s.args, s.id, s.overlap, l.app) end"
        " from jsonb_array_elements(%s) j join pgsched.schedules s on s.name = 's' || (j ->> 0)"
        " cross join lateral (select pgsched.limiting_app(j ->> 1, s.app) as app) l",
        table([(*row[:4], "trigger" if row[4] == "unknown" else row[4], row[5]) for row in runs]),
    )


async def claimed(member: Member, before: World) -> list[tuple[str, int]]:
    """Passes until nothing more is claimed: what was, as the model names it."""
    had = len(member.taken)
    while await member.dispatcher.claim_pass():
        pass
    return [("run", run.id) if run.id in before.runs else ("fire time", run.schedule_id) for run in member.taken[had:]]


async def compare(settings, jobs, schedules, sizes, ends, *, crossing: bool) -> None:
    members = [Member(settings, size, crossing=crossing) for size in sizes]
    jobs, schedules = known(jobs, crossing=crossing), known(schedules, crossing=crossing)
    try:
        async with await psycopg.AsyncConnection.connect(settings.dsn, autocommit=True) as db:
            await fill(db, settings.schema, jobs, schedules)
            for turn, share in enumerate(ends):
                member = members[turn % 2]
                model, seen = await world(db, member), await world(db, member)
                while model.start():
                    pass
                assert sorted(await claimed(member, seen)) == sorted(model.started)
                over = [run for nth, run in enumerate(member.taken) if nth % 3 < share]
                member.taken[:] = [run for run in member.taken if run not in over]
                member.count()
                await db.execute(in_schema(END.encode(), settings.schema), ([run.id for run in over],))
    finally:
        for member in members:
            await member.__aexit__()


# Examples are small, and to shrink one takes minutes. So it is shown as it was found.
@examples(
    max_examples=25, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(
    jobs=JOBS,
    schedules=SCHEDULES | st.just([]),  # nothing but jobs is due: most passes are like that
    sizes=st.tuples(SIZES, SIZES),
    ends=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    crossing=st.booleans(),
)
def test_the_claim_takes_what_the_model_says_is_next(settings, jobs, schedules, sizes, ends, *, crossing):
    async def declare() -> None:
        member = Member(settings)
        async with member.kit.control.use() as connection:
            await Reconciler(member.kit).start(connection)
        await member.__aexit__()

    asyncio.run(declare())
    asyncio.run(compare(settings, jobs, schedules, sizes, ends, crossing=crossing))
