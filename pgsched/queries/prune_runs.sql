-- Deletes ended runs past the retention, a batch at a time, without waiting for anybody.
delete from pgsched.runs
where id in (
    select id from pgsched.runs
    where status in ('succeeded', 'failed', 'cancelled', 'skipped') and finished_at < now() - %(older_than)s
    order by finished_at
    limit %(limit)s
    for update skip locked
)
