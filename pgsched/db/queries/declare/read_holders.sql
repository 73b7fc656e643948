-- The live workers of an application; with in_force only those whose declarations are in force.
select w.host, w.pid, w.project
from pgsched.live_workers w
where w.app = %(app)s
    and (not %(in_force)s or exists (
        select from pgsched.declarations d where d.app = w.app and d.fingerprint = w.fingerprint
    ))
order by w.host, w.pid
