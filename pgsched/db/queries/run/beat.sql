-- Renews claims, and returns one row for each claim that still holds.
-- A row that somebody has locked right now (a finish, a reaper, a client) is passed over: whether its claim holds is
-- read without waiting. The sign of life goes into the worker's row then, because a client may keep its lock as long as
-- it likes. The claim of a run whose own transaction has committed its success holds, too.
-- - 1: somebody asked to cancel the run
-- - 2: the claim is withdrawn, because its schedule has changed since, and the run has not begun, by the writes before
--   this beat
-- If a claim is in other hands, the same statement records that its thread goes on (`thread_ids`: all that do). Between
-- two statements another run could start next to the thread.
with claims as (
    select * from unnest(%(ids)s::bigint[], %(tokens)s::bigint[], %(started)s::timestamptz[])
        as c (id, token, started_at)
),
mine as materialized (
    select r.id, c.started_at
    from claims c
    cross join lateral (
        -- Each by its id: by stale statistics almost nothing runs, and a join would compare each with each. The offset
        -- keeps the condition on status out of here; it would make each claim walk the index of all running runs.
        select r.id, r.status
        from pgsched.runs r
        where r.id = c.id and r.token = c.token and r.worker = %(worker)s
        offset 0
        for no key update skip locked
    ) r
    where r.status = 'running'
),
beaten as (
    update pgsched.runs r
    set heartbeat_at = clock_timestamp(), started_at = coalesce(r.started_at, mine.started_at)
    from mine
    where r.id = mine.id
),
passed as (
    update pgsched.workers w
    set passed_at = clock_timestamp()
    from (
        select id from pgsched.workers
        where id = %(worker)s and (select count(*) from mine) < cardinality(%(ids)s::bigint[])
            and exists (
                select from claims c
                cross join lateral (
                    select r.status from pgsched.runs r
                    where r.id = c.id and r.token = c.token and r.worker = %(worker)s
                    offset 0
                ) r
                where r.status = 'running' and c.id not in (select id from mine)
            )
        for no key update skip locked
    ) me
    where w.id = me.id
),
behind as (
    insert into pgsched.left_behind (run_id, token, worker, schedule_id, app, entrypoint, args, counts_until)
    select r.id, t.token, %(worker)s, r.schedule_id, coalesce(r.limited_by, r.app), r.entrypoint, r.args,
        clock_timestamp() + %(lease)s
    from unnest(%(thread_ids)s::bigint[], %(thread_tokens)s::bigint[]) as t (id, token)
    cross join lateral (
        select r.id, r.token, r.worker, r.schedule_id, r.app, r.limited_by, r.entrypoint, r.args
        from pgsched.runs r where r.id = t.id offset 0
    ) r
    where (r.token, r.worker) is distinct from (t.token, %(worker)s)
    on conflict do nothing
)
select r.id, r.token,
    case when r.status <> 'running' then 0
        when r.cancel_requested_at is not null then 1
        when r.schedule_version is not null and r.started_at is null and coalesce((
            select pgsched.withdrawn(r.schedule_version, r.fire_time, s.version, s.timed_version, s.timed_at)
            from pgsched.schedules s where s.id = r.schedule_id
        ), true) then 2
        else 0 end
from claims c
cross join lateral (
    select r.id, r.token, r.cancel_requested_at, r.status, r.committed_at, r.schedule_id, r.schedule_version, r.fire_time,
        r.started_at
    from pgsched.runs r
    where r.id = c.id and r.token = c.token and r.worker = %(worker)s
    offset 0
) r
where r.status = 'running' or r.committed_at is not null
