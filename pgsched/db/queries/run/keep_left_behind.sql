-- Updates the rows of the threads that a worker has left behind.
-- Extends the time that they count, adds those that lost their claim, and deletes those that have ended: all that are
-- not in `busy`, the tokens of all attempts whose threads are at work. A run that is running under its claim counts by
-- itself, and its end writes the row. Sent again and again while there are any, so that nothing depends on a single
-- answer. Wakes workers if a run has waited for its own earlier attempt.
with given as (
    select * from unnest(%(ids)s::bigint[], %(tokens)s::bigint[]) as g (id, token)
),
gone as (
    delete from pgsched.left_behind where worker = %(worker)s and token <> all(%(busy)s::bigint[])
    returning run_id
),
kept as (
    update pgsched.left_behind set counts_until = clock_timestamp() + %(lease)s
    where worker = %(worker)s and token = any(%(tokens)s::bigint[])
),
added as (
    insert into pgsched.left_behind (run_id, token, worker, schedule_id, app, entrypoint, args, counts_until)
    select r.id, g.token, %(worker)s, r.schedule_id, coalesce(r.limited_by, r.app), r.entrypoint, r.args,
        clock_timestamp() + %(lease)s
    from given g
    cross join lateral (
        select r.id, r.token, r.worker, r.status, r.schedule_id, r.app, r.limited_by, r.entrypoint, r.args
        from pgsched.runs r where r.id = g.id offset 0
    ) r
    where (r.token, r.worker, r.status) is distinct from (g.token, %(worker)s, 'running')
    on conflict do nothing
)
select pg_catalog.pg_notify(%(channel)s, '')
from (
    select from gone cross join lateral (
        select r.status from pgsched.runs r where r.id = gone.run_id offset 0
    ) r
    where r.status = 'queued' limit 1
) freed
