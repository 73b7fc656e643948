-- Gives all schedules of one application to another, also retired ones with their history.
-- A trigger moves their live runs, too. Returns their names.
with held as materialized (
    select id from pgsched.schedules where owner = 'code:' || %(old)s::text or app = %(old)s order by id for no key update
),
moved as (
    update pgsched.schedules s
    set owner = case when s.owner = 'code:' || %(old)s::text then 'code:' || %(new)s::text else s.owner end,
        app = %(new)s
    from held
    where s.id = held.id
    returning s.name
)
select name from moved order by 1
