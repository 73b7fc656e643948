"""The soak's own tables, a trail of what happens to runs, and the schedules that it fires."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

# A row of the trail has a name that holds on every server, so that one that a failover has lost can be told.
TABLES = b"""
create schema soak;
create table soak.paid (key text not null, run bigint not null, token bigint not null);
create table soak.orders (key text primary key);
create table soak.trail (
    number bigint generated always as identity primary key, id uuid not null default gen_random_uuid(),
    at timestamptz not null default clock_timestamp(), op text not null, run bigint not null, token bigint,
    attempt int, worker uuid, status text, key text
);
create function soak.note() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp set timezone = 'UTC' as $$
declare
    it pgsched.runs := case when tg_op = 'DELETE' then old else new end;
begin
    insert into soak.trail (op, run, token, attempt, worker, status, key)
    values (tg_op, it.id, it.token, it.attempt, it.worker, it.status, coalesce(it.args ->> 'job',
        (select s.name from pgsched.schedules s where s.id = it.schedule_id) || ' '
            || to_char(it.fire_time, 'YYYY-MM-DD"T"HH24:MI:SS"+00:00"')));
    return null;
end $$;
create trigger zz_soak_added after insert or delete on pgsched.runs for each row execute function soak.note();
create trigger zz_soak_changed after update on pgsched.runs
    for each row when ((old.status, old.token) is distinct from (new.status, new.token))
    execute function soak.note();
"""
OVERLAPS = ("skip", "queue", "cancel", "allow", "2")
CATCH_UPS = ("latest", "all", "none")
PERIODS = {"tick": 1, "pay": 2, "pay sync": 2}  # seconds, of the schedules of each daemon
POLICY_PERIOD = 5
_MAKE = b"select pgsched.create_schedule(%s, %s, %s, %s, 'UTC', %s)"


def schedules(daemons: Sequence[str]) -> Iterator[tuple[bytes, tuple[object, ...]]]:
    """The statements that make all schedules: some that only one daemon can run, and one for each pair of policies."""
    for daemon in daemons:
        for entrypoint, period in PERIODS.items():
            name = f"{entrypoint} {daemon}"
            yield _MAKE, (name, name, f"* * * * * */{period}", "{}", json.dumps({"overlap": "allow"}))
    for overlap in OVERLAPS:
        for catch_up in CATCH_UPS:
            name = f"{overlap} {catch_up}"
            options = {"overlap": overlap, "catch_up": catch_up}
            if overlap == "queue":
                options["jitter"] = "1 s"
            if catch_up == "all":
                options["grace"] = "5 min"
            entrypoint = "work sync" if overlap == "2" else "work"
            args = json.dumps({"longest": 8})
            yield _MAKE, (name, entrypoint, f"* * * * * */{POLICY_PERIOD}", args, json.dumps(options))
