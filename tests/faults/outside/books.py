"""Compares what the functions have noted with the database: each check returns a sentence for each breach, and no more.

The checks are pure, so that test_outside.py can plant a loss and a double.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from outside.application import LIMITED, PER_TENANT
from outside.notes import Call, Mercy
from outside.schema import OVERLAPS, PERIODS, POLICY_PERIOD
from outside.traffic import Enqueued

Row = dict[str, Any]
# The rows of all runs, with the names by which the functions know them.
ROWS = """
    select r.id, s.name as schedule, r.fire_time, r.args ->> 'job' as job, r.entrypoint, r.status, r.attempt, r.token,
        r.worker::text as worker, r.skipped_count, r.skipped_through, r.reason, r.detail, r.due_at, r.heartbeat_at,
        jsonb_path_query_array(r.errors, '$[*] ? (@.type == "WorkerLost")') as losses,
        case when r.entrypoint like 'pay%' then coalesce(p.payments, 0) end as payments,
        extract(epoch from clock_timestamp())::float8 as now
    from pgsched.runs r
    left join pgsched.schedules s on s.id = r.schedule_id
    left join (select run, count(*) as payments from soak.paid group by run) p on p.run = r.id
    order by r.id
"""
# An order without its job, or a payment without its run: half of a transaction.
HALVES = """
    select 'order ' || o.key || ' has no job' as breach, o.key from soak.orders o
    where not exists (select from pgsched.runs r where r.args ->> 'job' = o.key)
    union all
    select 'payment of ' || p.key || ' has no run', p.key from soak.paid p
    where not exists (select from pgsched.runs r where r.id = p.run)
"""
WAITS = 60.0  # seconds that a run may wait, or be silent, once everything works again


def key_of(row: Row) -> str:
    if row["job"] is not None:
        return str(row["job"])
    return f"{row['schedule']} {row['fire_time'].astimezone(UTC).isoformat()}"


def unaccounted(rows: list[Row]) -> Iterator[str]:
    """Fire times that are neither a run nor a recorded skip, and those that are twice."""
    spans = defaultdict(list)
    for row in rows:
        if row["schedule"] is not None:
            spans[row["schedule"]].append(row)
    for name, own in spans.items():
        period = timedelta(seconds=_period(own[0]["entrypoint"]))
        after: datetime | None = None
        for row in sorted(own, key=lambda each: each["fire_time"]):
            if after is not None and row["fire_time"] != after + period:
                what = "is missing" if row["fire_time"] > after + period else "is there twice"
                yield f"{name}: the fire time between {after} and {row['fire_time']} {what}"
            after = row["skipped_through"] or row["fire_time"]
            expected = (after - row["fire_time"]) // period + 1
            if row["status"] == "skipped" and row["skipped_count"] not in (None, expected):
                yield f"{name}: the skip of {row['fire_time']} counts {row['skipped_count']} instead of {expected}"


def _period(entrypoint: str) -> int:
    return next((p for name, p in PERIODS.items() if entrypoint.startswith(f"{name} ")), POLICY_PERIOD)


def doubled(calls: list[Call], mercy: Mercy) -> Iterator[str]:
    """Calls of one run that nothing explains."""
    by_key = defaultdict(list)
    for call in calls:
        by_key[call.key].append(call)
    for key, own in by_key.items():
        own.sort(key=lambda call: call.began)
        for first, second in itertools.pairwise(own):
            if mercy.covers(first):
                continue
            if (first.claim, first.pid) == (second.claim, second.pid):
                yield f"{key}: one claim was called twice: {first}; {second}"
            elif first.ended is None or first.ended > second.began:
                yield f"{key}: two calls at once: {first}; {second}"
            elif first.how != "failed":
                yield f"{key}: called again without a reason: {first}; {second}"


def over_limits(calls: list[Call], mercy: Mercy, now: float) -> Iterator[str]:
    """More calls at once than an overlap or a limit allows."""
    groups = defaultdict(list)
    for call in calls:
        if group := _group(call):
            groups[group].append(call)
    for (name, most), own in groups.items():
        steps = sorted(
            step for number, call in enumerate(own) if not mercy.covers(call)
            for step in ((call.began, 1, number), (now if call.ended is None else call.ended, -1, number))
        )  # fmt: skip
        live: set[int] = set()
        for _, step, number in sorted(steps, key=lambda each: (each[0], each[1])):
            live.add(number) if step == 1 else live.discard(number)
            if len(live) > most:
                shown = "; ".join(str(own[each]) for each in sorted(live))
                yield f"{name}: {len(live)} calls at once, and {most} are allowed: {shown}"


def _group(call: Call) -> tuple[str, int] | None:
    if call.entrypoint == "limited":
        return "limited", LIMITED
    if call.entrypoint == "keyed":
        return f"tenant {call.tenant}", PER_TENANT
    words = call.key.split(" ")
    if call.entrypoint in ("work", "work sync") and words[0] in OVERLAPS and words[0] != "allow":
        return " ".join(words[:2]), int(words[0]) if words[0].isdigit() else 1
    return None


def torn(rows: list[Row], calls: list[Call], mercy: Mercy) -> Iterator[str]:
    """Rows that say something else than the functions. The rows were read before the notes."""
    by_run = defaultdict(list)
    for call in calls:
        by_run[call.run, call.key].append(call)
    for row in rows:
        key = key_of(row)
        own = by_run.pop((row["id"], key), [])
        shown = f"{key} (run {row['id']}, {row['status']})"
        if row["status"] == "failed":
            yield f"{shown}: failed although it had attempts left"
        if row["status"] == "skipped" and any(not mercy.covers(call) for call in own):
            yield f"{shown}: recorded as skipped, and was called: {own[0]}"
        if row["status"] == "succeeded" and key not in mercy.keys:
            last = [call for call in own if call.worker == row["worker"] and call.attempt == row["attempt"]]
            if not any(call.how == "ended" or row["payments"] for call in last):
                yield f"{shown}: succeeded without a call that ended: {[str(call) for call in own]}"
        if row["payments"] is not None and row["payments"] != (row["status"] == "succeeded"):
            yield f"{shown}: {row['payments']} payments"


def unknown(rows: list[Row], calls: list[Call], mercy: Mercy, until: float) -> Iterator[str]:
    """Calls whose run is not in the database. until: when the rows were read."""
    there = {(row["id"], key_of(row)) for row in rows}
    for call in calls:
        if call.began < until and (call.run, call.key) not in there and call.claim not in mercy.claims:
            yield f"{call.key}: was called, and there is no such run: {call}"


def taken_away(rows: list[Row], calls: list[Call], mercy: Mercy, to_monotonic: float) -> Iterator[str]:
    """Claims that a reaper took from a healthy worker. to_monotonic: what to add to an instant for the notes' clock."""
    by_attempt = {(call.run, call.key, call.attempt, call.worker): call for call in calls}
    for row in rows:
        for loss in row["losses"]:
            call = by_attempt.get((row["id"], key_of(row), loss["attempt"], loss["worker"]))
            if call is None or call.claim in mercy.claims:
                continue  # the answer to the claim was lost, so nobody began it
            at = datetime.fromisoformat(loss["at"]).timestamp() + to_monotonic
            if not mercy.hindered(call.pid, at - 60, at):
                yield f"{key_of(row)}: taken from a healthy worker at {at:.2f} ({loss['message']}): {call}"


def forgotten(rows: list[Row], calls: list[Call], enqueued: dict[str, Enqueued], mercy: Mercy) -> Iterator[str]:
    """Answers to clients that did not come true. `enqueued` is as it was before the rows were read."""
    by_key = {key_of(row): row for row in rows}
    began = {call.key: call.began for call in calls}  # the last call
    for key, job in enqueued.items():
        if key in mercy.keys:
            continue
        row = by_key.get(key)
        if row is None:
            yield f"{key}: enqueue() returned run {job.run}, and there is no such run"
        elif job.cancelled is not None and row["status"] != "cancelled":
            yield f"{key}: cancel() returned cancelled at {job.cancelled:.2f}, and run {job.run} is {row['status']}"
        elif job.cancelled is not None and began.get(key, 0.0) > job.cancelled:
            yield f"{key}: was called at {began[key]:.2f}, after cancel() at {job.cancelled:.2f}"


def waiting(rows: list[Row]) -> Iterator[str]:
    """Runs that wait although everything works, or that nobody keeps alive."""
    for row in rows:
        if row["status"] == "queued" and row["now"] - row["due_at"].timestamp() > WAITS:
            yield f"{key_of(row)}: run {row['id']} has been due since {row['due_at']}"
        if row["status"] == "running" and row["heartbeat_at"] and row["now"] - row["heartbeat_at"].timestamp() > WAITS:
            yield f"{key_of(row)}: run {row['id']} has had no heartbeat since {row['heartbeat_at']}"
