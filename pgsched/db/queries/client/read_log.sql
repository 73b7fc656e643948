-- The newest lines that a run logged after a given line, oldest first.
-- One row without a line if there is only the run.
select l.id, l.attempt, l.worker, l.at, l.level, l.text
from (select id from pgsched.runs where id = %(run_id)s::bigint) r
left join lateral (
    select * from pgsched.logs
    where run_id = r.id and id > %(after)s::bigint and (%(attempt)s::int is null or attempt = %(attempt)s)
    order by id desc
    limit %(limit)s::int
) l on true
order by l.id
