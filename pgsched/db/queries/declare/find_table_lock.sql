-- The session whose lock on one of our tables keeps a start from writing.
-- Reads none of these tables, so it never waits.
select 'The table ' || c.relname as what, l.pid, a.xact_start as since
from pg_catalog.pg_locks l
join pg_catalog.pg_class c on c.oid = l.relation
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
left join pg_catalog.pg_stat_activity a on a.pid = l.pid
where n.nspname = %(schema)s and l.granted
    and l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    and a.application_name is distinct from %(own)s
order by a.xact_start
limit 1
