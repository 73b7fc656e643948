-- The queued runs that a claim may take next, the first ones of each entrypoint, whatever gate or line they wait at. Locks
-- them, so that they are noted in the version that is tried. Those that rest are left out.
select r.id
from unnest(%(entrypoints)s::text[]) as e (entrypoint)
cross join lateral (
    select r.id from pgsched.runs r
    where r.status = 'queued' and r.entrypoint = e.entrypoint and (r.app is null or r.app = %(app)s)
        and r.due_at <= now() + %(lookahead)s
        and r.id not in (select id from pgsched.resting where kind = 'run' and until > now())
    order by r.priority desc, r.due_at, r.id
    limit %(limit)s
    for no key update skip locked
) r
order by r.id
