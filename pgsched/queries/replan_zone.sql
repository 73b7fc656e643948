-- Has the next schedules of a time zone planned anew, from where their fire times are accounted for. It waits for rows
-- that somebody has locked: none may be left as it was. With planned_at set, it counts as no client's change.
with batch as materialized (
    select id from pgsched.schedules
    where timezone = %(name)s and id > %(after)s and status in ('active', 'paused') and next_run is not null
    order by id
    limit %(limit)s
    for no key update
)
update pgsched.schedules s
set next_run = null, planned_at = clock_timestamp()
from batch
where s.id = batch.id
returning s.id
