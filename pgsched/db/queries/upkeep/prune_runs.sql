-- Deletes a batch of the runs of one status that ended long enough ago, with their logs, from the end of the last
-- batch.
-- One worker at a time: if another one is at work, nothing is read. A row that somebody has locked is left to the next
-- round.
-- look: deletes nothing, to get past a run that the server refuses to delete.
-- Rows that a schedule still needs are kept: the run of its last fire time, and those of fire times that it may reach
-- again (it was paused or changed before an earlier one had started), which would run twice.
with turn as materialized (
    select name from pgsched.turns where name = 'retention' for update skip locked
),
old as materialized (
    select r.id, r.finished_at
    from pgsched.runs r
    -- The list matches the condition of the index; from a parameter alone the planner could not infer it.
    where r.status in ('succeeded', 'failed', 'cancelled', 'skipped') and r.status = %(status)s
        and r.finished_at < now() - %(age)s::interval
        and (r.finished_at, r.id) > (coalesce(%(after)s::timestamptz, '-infinity'), coalesce(%(after_id)s::bigint, 0))
        and exists (select from turn)
    order by r.finished_at, r.id
    limit %(limit)s
    for update skip locked
),
gone as (
    delete from pgsched.runs r
    -- Through an array: for an unknown LIMIT the planner assumes a tenth of the table and would scan it.
    using (select unnest(array(select id from old)) as id) old
    where r.id = old.id
        and not %(look)s::boolean
        and (%(status)s = 'skipped' or not exists (
            select from pgsched.schedules s
            where s.id = r.schedule_id
                and (s.last_run = r.fire_time or r.origin is distinct from 'trigger'
                     and (r.fire_time > s.accounted_through or r.fire_time >= s.next_run))
        ))
    returning r.id
),
last as (
    select finished_at, id from old order by finished_at desc, id desc limit 1
)
select exists (select from turn) as mine, (select count(*) from old) as seen, (select count(*) from gone) as gone, last.finished_at as after,
    last.id as after_id
from (select) one
left join last on true
