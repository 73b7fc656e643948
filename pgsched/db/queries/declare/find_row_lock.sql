-- The session that has a schedule locked that an application declares or owns.
-- A row names the transaction that locked it last, and a transaction in progress holds a lock on its own id.
select 'Schedule "' || s.name || '"' as what, l.pid, a.xact_start as since
from pgsched.schedules s
join pg_catalog.pg_locks l on l.transactionid = s.xmax and l.locktype = 'transactionid' and l.granted
left join pg_catalog.pg_stat_activity a on a.pid = l.pid
where (s.name = any(%(names)s) or s.owner = %(owner)s) and a.application_name is distinct from %(own)s
order by a.xact_start, s.name
limit 1
