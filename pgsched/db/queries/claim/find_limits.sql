-- The limits of these entrypoints at which a claim writes (those with a rate), without those that rest. Locks them; one that
-- another worker claims from just now is passed over.
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
