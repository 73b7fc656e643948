-- How many of these runs are in each status.
select status, count(*)::int as count from pgsched.runs where id = any(%(ids)s::bigint[]) group by status
