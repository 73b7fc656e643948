-- The other live workers: the tzdata release of each, the zones that it leaves to others, and its entrypoints.
-- If the server would show a worker's sessions but shows none, the worker keeps no zone, however recently it was seen:
-- its schedules would stand still. If it is alive after all, it finds the zone planned by older rules and plans it
-- again.
select w.app, w.tzdata, w.withheld, w.entrypoints
from pgsched.live_workers l
join pgsched.workers w on w.id = l.id
where w.id <> %(worker)s and w.state = 'running'
    and (not w.direct or exists (
        select from pg_catalog.pg_stat_activity a where a.application_name = 'pgsched ' || w.id
    ))
