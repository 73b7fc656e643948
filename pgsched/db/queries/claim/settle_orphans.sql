-- Settles waiting runs whose schedules are gone and can no longer be locked.
-- Runs that had begun go on without a schedule, the others are cancelled. Schedules are walked one by one, so that one
-- with ten thousand waiting runs costs one step.
with recursive waiting (schedule_id) as (
    (select schedule_id from pgsched.runs where status = 'queued' and gated order by schedule_id limit 1)
    union all
    select (
        select r.schedule_id from pgsched.runs r
        where r.status = 'queued' and r.gated and r.schedule_id > w.schedule_id
        order by r.schedule_id limit 1
    )
    from waiting w
    where w.schedule_id is not null
),
orphans as materialized (
    select r.id
    from waiting w
    join pgsched.runs r on r.status = 'queued' and r.gated and r.line is null and r.schedule_id = w.schedule_id
    where not exists (select from pgsched.schedules s where s.id = w.schedule_id)
    order by r.id
    limit 1000
    for no key update of r skip locked
)
update pgsched.runs r
set gated = false,
    status = case when r.attempt > 0 then 'queued' else 'cancelled' end,
    reason = case when r.attempt > 0 then r.reason else 'schedule removed' end,
    finished_at = case when r.attempt > 0 then null else clock_timestamp() end
from orphans
where r.id = orphans.id
