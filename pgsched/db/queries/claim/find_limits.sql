-- Locks the limits of these entrypoints that a claim writes to: those with a rate, except those set aside.
-- Passes over limits that another worker is claiming from.
select l.id
from pgsched.limits l
where l.starts is not null
    and l.gate in (
        select m.gate from pgsched.limit_members m where m.app = %(app)s and m.entrypoint = any(%(entrypoints)s)
    )
    and l.id not in (select id from pgsched.resting where kind = 'limits' and until > now())
order by l.id
limit %(limit)s
for no key update of l skip locked
