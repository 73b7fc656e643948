-- Makes way for the next fire time of locked schedules whose overlap is cancel.
-- Waiting runs are cancelled, running ones are asked to stop. Returns the schedules that have a run locked by somebody
-- else: they have to be asked again, because a pass must not wait for a client.
with live as materialized (
    select id, schedule_id, status from pgsched.runs
    where status = 'running' and origin is null and schedule_id = any(%(schedule_ids)s)
    union all
    select id, schedule_id, status from pgsched.runs
    where status = 'queued' and gated and origin is null and schedule_id = any(%(schedule_ids)s)
),
held as materialized (
    select r.id from pgsched.runs r
    where r.id in (select id from live) and r.status in ('queued', 'running')
    order by r.id
    for no key update skip locked
),
replaced as (
    update pgsched.runs r
    set status = case r.status when 'queued' then 'cancelled' else r.status end,
        finished_at = case r.status when 'queued' then clock_timestamp() end,
        cancel_requested_at = coalesce(r.cancel_requested_at, clock_timestamp()),
        reason = 'replaced by the next fire time'
    from held
    where r.id = held.id
)
select distinct live.schedule_id from live where live.id not in (select id from held)
