-- The clock (first row), and the live runs of each locked schedule: how many of its fire times are running, how many
-- wait (for their turn, or between two attempts), how many are running because somebody asked for them; and some of
-- their ids. A statement of its own, after the lock: in the locking statement's snapshot a run that another worker
-- committed meanwhile would be missing.
select null::bigint as schedule_id, 0 as running, 0 as waiting, 0 as requested, null::bigint[] as ids, now() as now
union all
select schedule_id,
    (count(*) filter (where status = 'running' and origin is null))::int,
    (count(*) filter (where status = 'queued' and origin is null))::int,
    (count(*) filter (where status = 'running' and origin is not null))::int,
    (array_agg(id order by id) filter (where status = 'running' or origin is null))[1:3],
    null
from (
    select id, schedule_id, status, origin from pgsched.runs
    where status = 'running' and schedule_id = any(%(schedule_ids)s)
    union all
    select id, schedule_id, status, origin from pgsched.runs
    where status = 'queued' and gated and origin is null and schedule_id = any(%(schedule_ids)s)
) live
group by schedule_id
