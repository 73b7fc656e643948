-- Locks waiting runs of locked schedules, as many as each overlap leaves room for; claim_runs claims them.
-- A statement of its own, after the lock, so that it counts the runs that another worker claimed meanwhile. A run
-- between two attempts goes before those that never started. Of a paused schedule, only runs that had begun, or that
-- somebody asked for, go on.
-- ids: only these runs.
with gates as materialized (
    select s.id, s.status,
        pgsched.overlap_limit(s.overlap)
            - (select count(*) from pgsched.executing e where e.schedule_id = s.id) as room
    from pgsched.schedules s
    where s.id = any(%(schedule_ids)s)
),
due as materialized (
    select c.id, c.due_at, c.priority, sum(c.size) over (order by c.due_at > now(), c.priority desc, c.due_at, c.id
        rows between unbounded preceding and current row) - c.size as before
    from gates g
    cross join lateral (
        select r.id, r.due_at, r.priority, pg_column_size(r.args) as size
        from pgsched.runs r
        where r.status = 'queued' and r.gated and r.line is null and r.schedule_id = g.id
            -- A run that this worker cannot execute must not block the others.
            and r.entrypoint = any(%(entrypoints)s) and (r.app is null or r.app = %(app)s)
            and r.id not in (select id from pgsched.unclaimable)
            and (r.attempt > 0 or r.due_at <= now() + %(lookahead)s)
            and not (g.status = 'paused' and r.attempt = 0 and r.origin is null)
        order by (r.attempt > 0) desc, r.priority desc, r.due_at, r.id
        limit greatest(g.room, 0)
    ) c
    where c.due_at <= now() + %(lookahead)s and (%(ids)s::bigint[] is null or c.id = any(%(ids)s))
    order by c.due_at > now(), c.priority desc, c.due_at, c.id
    limit %(limit)s
),
held as materialized (
    select r.id, r.entrypoint from pgsched.runs r
    -- Through an array, as in claim_due_runs.
    where r.id = any(array(select id from due where before < %(bytes)s)) and r.status = 'queued'
    order by r.id
    for no key update skip locked
),
-- Queued before their entrypoint had limits: these runs move to its lines and are not claimed.
strays as (
    update pgsched.runs r
    set gated = true, limited_by = m.app, line = pgsched.line_for(
        r.entrypoint, r.args, r.schedule_id,
        (select s.overlap from pgsched.schedules s where s.id = r.schedule_id), m.app)
    from held, pgsched.limit_members m
    where r.id = held.id and m.entrypoint = r.entrypoint and m.app = %(app)s and m.limited
)
select h.id from held h
where not exists (
    select from pgsched.limit_members m where m.entrypoint = h.entrypoint and m.app = %(app)s and m.limited
)
