-- The other applications that own a name which this one declares.
-- For each: how many schedules it has in force, how many of these are declared here, and how many live workers it has.
select substr(o.owner, 6) as app,
    (select count(*) from pgsched.schedules s where s.owner = o.owner and s.retired_at is null) as schedules,
    (select count(*) from pgsched.schedules s
     where s.owner = o.owner and s.retired_at is null and s.name = any(%(declared)s)) as shared,
    (select count(*) from pgsched.live_workers w where w.app = substr(o.owner, 6)) as alive
from (
    select distinct s.owner from pgsched.schedules s
    where s.name = any(%(declared)s) and starts_with(s.owner, 'code:') and s.owner <> %(owner)s
) o
order by 1
