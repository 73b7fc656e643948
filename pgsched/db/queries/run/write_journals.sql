-- Writes the lines and the progress of attempts, each only under its claim. Returns the claims that it wrote under.
-- Nothing is written for a run if somebody has locked its row, or if its claim is lost. Lines that an earlier try of
-- the same write has inserted stay as they are.
with given as (
    select * from unnest(
        %(ids)s::bigint[], %(tokens)s::bigint[], %(done)s::float8[], %(total)s::float8[]
    ) as g (id, token, done, total)
),
held as materialized (
    select r.id, r.attempt, r.token, g.done, g.total
    from given g
    cross join lateral (  -- each by its id, as in finish_runs
        select r.id, r.attempt, r.token
        from pgsched.runs r
        where r.id = g.id and r.token = g.token and r.worker = %(worker)s
            and (r.status = 'running' or r.committed_at is not null)
        for no key update skip locked
    ) r
),
progressed as (
    update pgsched.runs r
    set progress_done = held.done, progress_total = held.total, progressed_at = clock_timestamp()
    from held
    where r.id = held.id and held.done is not null
),
written as (
    insert into pgsched.logs (run_id, attempt, token, worker, number, at, level, text)
    select held.id, held.attempt, held.token, %(worker)s, l.number, l.at, l.level, l.text
    from unnest(
        %(line_ids)s::bigint[], %(line_tokens)s::bigint[], %(numbers)s::int[], %(ats)s::timestamptz[], %(levels)s::text[],
        %(texts)s::text[]
    ) as l (id, token, number, at, level, text)
    join held on held.id = l.id and held.token = l.token
    order by l.id, l.number
    on conflict do nothing
)
select id, token from held
