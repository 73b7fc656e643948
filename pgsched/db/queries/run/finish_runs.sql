-- Writes how attempts ended, each only under its claim, and returns those that landed.
-- A row that somebody has locked right now is passed over: neither its end, nor any end behind it, may wait for a
-- client's transaction.
-- A run that would be queued again, although somebody asked to cancel it, ends as cancelled. A run whose transaction
-- has committed its success has succeeded, however its function ended after that: only its result is still written.
-- If a failover has undone that commit (`transacted`), nothing is written: a success without its effects is none.
with given as (
    select * from unnest(
        %(ids)s::bigint[], %(tokens)s::bigint[], %(statuses)s::text[], %(started)s::timestamptz[],
        %(finished)s::timestamptz[], %(results)s::text[], %(error_types)s::text[], %(messages)s::text[],
        %(tracebacks)s::text[], %(reasons)s::text[], %(delays)s::float8[], %(refunds)s::int[], %(transacted)s::bool[]
    ) as g (id, token, status, started_at, finished_at, result, error_type, message, traceback, reason,
            delay, refund, transacted)
),
-- Lateral, so that each row is found by its id: by stale statistics almost nothing is running, and a join would compare
-- each given row with every running one. It carries all given values along, for the same reason.
held as materialized (
    select g.id, g.token, g.started_at, g.finished_at, g.result, g.error_type, g.message, g.traceback, g.delay,
        c.committed, case when c.committed or c.other > 0 then 0 else g.refund end as refund,
        case when c.committed then 'succeeded' when c.cancelled then 'cancelled' when c.other = 0 then g.status
            when g.error_type is null then 'cancelled' else 'failed' end as status,
        case when c.committed and g.status <> 'succeeded' then 'after its transaction had committed: '
                || left(coalesce(g.error_type || ': ' || g.message, g.reason, 'its worker was stopped'), 2000)
            when c.cancelled or g.status = 'cancelled' then coalesce(r.reason, g.reason, 'cancelled on request')
            when c.other > 0 then 'run ' || c.other || ' with its unique key is waiting' else g.reason end as reason
    from given g
    cross join lateral (
        select r.committed_at, r.cancel_requested_at, r.reason,
            g.status = 'queued' and r.unique_key is not null and r.unique_while = 'waiting' as alone
        from pgsched.runs r
        where r.id = g.id and r.token = g.token and r.worker = %(worker)s
            and (r.status = 'running' and not g.transacted or r.committed_at is not null)
        for no key update skip locked
    ) r
    cross join lateral (
        select r.committed_at is not null as committed,
            g.status = 'queued' and r.cancel_requested_at is not null as cancelled,
            -- Null: it is not certain yet whether another run with its key waits, so this end has to come again.
            case when r.alone and r.committed_at is null and r.cancel_requested_at is null
                then pgsched.waiting_instead(g.id, array(select x.id from given x where x.status = 'queued')) else 0 end as other
    ) c
    where c.other is not null
),
landed as (
    update pgsched.runs r
    set status = g.status,
        attempt = r.attempt - g.refund,
        started_at = case when g.committed then r.started_at else coalesce(g.started_at, r.started_at) end,
        finished_at = case when g.committed then r.finished_at
                           when g.status <> 'queued' then coalesce(g.finished_at, clock_timestamp()) end,
        due_at = case when g.status = 'queued' and (g.refund = 0 or g.delay > 0)
                      then clock_timestamp() + g.delay * interval '1 second' else r.due_at end,
        result = g.result::jsonb,
        reported_at = case when g.committed then clock_timestamp() end,
        reason = g.reason,
        errors = case when g.error_type is null or g.committed then r.errors
                      else pgsched.appended(r.errors, jsonb_build_object(
                          'attempt', r.attempt, 'at', coalesce(g.finished_at, clock_timestamp()),
                          'type', g.error_type, 'message', g.message, 'traceback', g.traceback,
                          'worker', r.worker, 'started_at', coalesce(g.started_at, r.started_at))) end,
        -- A run that was given back before it started has made no attempt.
        stops = case when g.refund = 0 or coalesce(g.started_at, r.started_at) is null then r.stops
                     else pgsched.appended(r.stops, jsonb_build_object(
                         'attempt', r.attempt, 'at', clock_timestamp(), 'worker', r.worker,
                         'started_at', coalesce(g.started_at, r.started_at), 'end', 'given_back', 'reason', g.reason)) end
    from held g
    where r.id = g.id
    returning r.id, r.token, r.schedule_id, r.status, r.fire_time, g.committed
),
-- In the same statement, so that at every instant the run or its thread counts. If the claim is lost, the thread counts
-- all the same.
behind as (
    insert into pgsched.left_behind (run_id, token, worker, schedule_id, app, entrypoint, args, counts_until)
    select r.id, b.token, %(worker)s, r.schedule_id, coalesce(r.limited_by, r.app), r.entrypoint, r.args,
        clock_timestamp() + %(lease)s
    from unnest(%(left)s::bigint[], %(left_tokens)s::bigint[]) as b (id, token)
    cross join lateral (
        select r.id, r.token, r.worker, r.schedule_id, r.app, r.limited_by, r.entrypoint, r.args
        from pgsched.runs r where r.id = b.id offset 0
    ) r
    where exists (select from landed l where l.id = b.id)
        or (r.token, r.worker) is distinct from (b.token, %(worker)s)
    on conflict do nothing
),
-- A schedule that somebody has locked is passed over: an end must never wait for a client's transaction.
last_ends as (
    select s.id, l.status
    from (
        select distinct on (schedule_id) schedule_id, status from landed
        where schedule_id is not null and status <> 'queued' order by schedule_id, fire_time desc
    ) l
    join pgsched.schedules s on s.id = l.schedule_id
    where s.last_status is distinct from l.status
    for no key update of s skip locked
),
note_last as (
    update pgsched.schedules s
    set last_status = last_ends.status, planned_at = coalesce(s.planned_at + interval '1 microsecond', clock_timestamp())
    from last_ends where s.id = last_ends.id
)
select id, token, committed from landed
