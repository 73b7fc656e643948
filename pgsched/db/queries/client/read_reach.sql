-- Whether there may be more runs than a list searches: by their ids, of which some may be gone.
select coalesce((select max(id) from pgsched.runs) - (select min(id) from pgsched.runs) >= %(most)s::bigint, false)
