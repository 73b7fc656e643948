-- Whether there may be more runs than a list searches, judged by their ids; some of those may be gone.
select coalesce((select max(id) from pgsched.runs) - (select min(id) from pgsched.runs) >= %(most)s::bigint, false)
