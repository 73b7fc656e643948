-- The other live workers: the tzdata release of each, the zones that it leaves to others, and what it can run.
select w.app, w.tzdata, w.withheld, w.entrypoints
from pgsched.live_workers l
join pgsched.workers w on w.id = l.id
where w.id <> %(worker)s and w.state = 'running'
