-- The clock (first row), and how many runs of each locked schedule are live. A statement of its own, after the lock: in the locking
-- statement's snapshot a run that another worker committed meanwhile would be missing.
select null::bigint, null::bigint, now()
union all
select schedule_id, count(*), null
from (
    select schedule_id from pgsched.runs where status = 'running' and schedule_id = any(%(schedule_ids)s)
    union all
    select schedule_id from pgsched.runs where status = 'queued' and schedule_id = any(%(schedule_ids)s)
) live
group by schedule_id
