-- The state of an application's declarations, always one row.
-- Which are in force (null: none yet) and since when, how many live workers have them, and whether the caller's were in
-- force before.
select now() as now, nullif(d.fingerprint, '') as in_force, d.applied_at,
    coalesce(%(fingerprint)s = any(d.former), false) as known,
    (select count(*) from pgsched.live_workers w where w.app = d.app and w.fingerprint = d.fingerprint) as alive
from (select) one
left join pgsched.declarations d on d.app = %(app)s
