-- Takes silent claims away: only the very claim that was seen, with the very beat that was seen. A beat or a
-- finish that comes in between wins, and one that holds the row just now is left in peace.
with verdicts as (
    select * from unnest(%(ids)s::bigint[], %(tokens)s::bigint[], %(beats)s::timestamptz[], %(statuses)s::text[],
                         %(delays)s::float8[], %(messages)s::text[])
        as v (id, token, heartbeat_at, status, delay, message)
),
stalled as materialized (
    select r.id, o.other, case when v.status <> 'queued' then v.status when r.cancel_requested_at is not null then 'cancelled'
        when o.other > 0 then 'failed' else 'queued' end as status
    from verdicts v
    join pgsched.runs r on r.id = v.id and r.token = v.token and r.heartbeat_at is not distinct from v.heartbeat_at
    cross join lateral (
        -- Null: whether another run with its key waits is not certain yet. The next look asks again.
        select case when v.status = 'queued' and r.unique_key is not null and r.unique_while = 'waiting'
            and r.cancel_requested_at is null then pgsched.waiting_instead(r.id,
                array(select x.id from verdicts x where x.status = 'queued')) else 0 end as other
    ) o
    where r.status = 'running' and o.other is not null
    order by r.id
    for no key update of r skip locked
),
reaped as (
    update pgsched.runs r
    set status = stalled.status,
        reason = case when stalled.status = 'cancelled' then coalesce(r.reason, 'cancelled on request')
            when stalled.other > 0 then 'run ' || stalled.other || ' with its unique key is waiting' else r.reason end,
        worker = null,
        -- A run that was claimed ahead of its instant is not due before it, whoever died meanwhile.
        due_at = case when stalled.status = 'queued'
                      then greatest(r.due_at, clock_timestamp() + v.delay * interval '1 second') else r.due_at end,
        finished_at = case when stalled.status <> 'queued' then clock_timestamp() end,
        errors = pgsched.appended(r.errors, jsonb_build_object(
            'attempt', r.attempt, 'at', clock_timestamp(), 'type', 'WorkerLost', 'message', v.message,
            'traceback', '', 'worker', r.worker, 'started_at', r.started_at))
    from verdicts v
    join stalled on stalled.id = v.id
    where r.id = v.id
    returning r.id, r.schedule_id, r.status, r.fire_time
),
-- As at a finish: a schedule that somebody has locked is passed over.
told as (
    select s.id, l.status
    from (
        select distinct on (schedule_id) schedule_id, status from reaped
        where schedule_id is not null and status <> 'queued' order by schedule_id, fire_time desc
    ) l
    join pgsched.schedules s on s.id = l.schedule_id
    where s.last_status is distinct from l.status
    for no key update of s skip locked
),
tell as (
    update pgsched.schedules s set last_status = told.status from told where s.id = told.id
)
select id from reaped
