-- Claims queued runs that are due or will be within the lookahead: enqueued jobs, their retries, what was given back.
-- Those of schedules whose overlap has to be looked at are gated, and claim_gated_runs'.
-- Priorities are walked one by one, so that within each the index gives the due ones in order and the far-future
-- ones are never read; the lock lies inside, so that workers do not queue up for the same rows.
-- alone: claims nothing where anything else is due that may have to go first, and says so; where nothing is, this one
-- statement is all that a pass has to send.
with recursive levels (priority) as (
    (select priority from pgsched.runs where status = 'queued' and not gated order by priority desc limit 1)
    union all
    select (
        select r.priority from pgsched.runs r
        where r.status = 'queued' and not r.gated and r.priority < l.priority
        order by r.priority desc limit 1
    )
    from levels l
    where l.priority is not null
),
others as materialized (
    select
        %(alone)s::boolean and exists (
            select from pgsched.schedules s
            where s.status = 'active' and coalesce(s.next_run, '-infinity'::timestamptz) <= now() + %(lookahead)s
                and s.entrypoint = any(%(entrypoints)s) and (s.app is null or s.app = %(app)s)
                and s.id not in (select id from pgsched.resting where kind = 'schedule' and until > now())
        ) as fire_times,
        %(alone)s::boolean and exists (
            select from pgsched.runs r
            where r.status = 'queued' and r.gated and r.line is null and r.due_at <= now() + %(lookahead)s
                and r.entrypoint = any(%(entrypoints)s) and (r.app is null or r.app = %(app)s)
                and r.id not in (select id from pgsched.resting where kind = 'run' and until > now())
        ) as waiting,
        -- Due or not: to find that out would step over all that is urgent and not due.
        %(alone)s::boolean and exists (
            select from unnest(%(entrypoints)s::text[]) as e (entrypoint) cross join lateral (
                select from pgsched.runs r
                where r.status = 'queued' and r.gated and r.line is not null and r.limited_by = %(app)s
                    and r.entrypoint = e.entrypoint
                order by -r.priority limit 1  -- in which order the entrypoint's own index has them
            ) l
        ) as lines
),
found as materialized (
    select d.id
    from levels l
    cross join lateral (
        select r.id
        from pgsched.runs r
        where r.status = 'queued' and not r.gated and r.priority = l.priority
            and r.due_at <= now() + %(lookahead)s
            and r.entrypoint = any(%(entrypoints)s) and (r.app is null or r.app = %(app)s)
            and r.id not in (select id from pgsched.resting where kind = 'run' and until > now())
            and (%(priority)s::int is null or r.priority = %(priority)s)
        order by r.due_at, r.id
        limit %(limit)s
        for no key update skip locked
    ) d
    where l.priority is not null and not (select o.fire_times or o.waiting or o.lines from others o)
    limit %(limit)s
),
-- By way of an array, of which a planner expects a few elements. Of a limit that it does not know it expects a tenth of
-- all that is queued, and would read the whole table to find these.
due as materialized (select unnest(array(select id from found)) as id),
-- Queued while its entrypoint had no limits yet: it goes and stands in line.
strays as (
    update pgsched.runs r
    set gated = true, limited_by = m.app, line = pgsched.line_for(r.entrypoint, r.args, r.schedule_id, null, m.app)
    from due, pgsched.limit_members m
    where r.id = due.id and m.entrypoint = r.entrypoint and m.app = %(app)s and m.limited
        and (select true from pgsched.limit_members where limited limit 1)
),
claimed as (
    update pgsched.runs r
    set status = 'running',
        attempt = r.attempt + 1,
        token = pgsched.next_token(),
        worker = %(worker)s,
        claimed_at = clock_timestamp(),
        heartbeat_at = clock_timestamp(),
        started_at = null,
        cancel_requested_at = null,
        max_attempts = coalesce(r.max_attempts, e.max_attempts),
        backoff = coalesce(r.backoff, e.backoff),
        max_backoff = coalesce(r.max_backoff, e.max_backoff),
        timeout = coalesce(r.timeout, e.timeout)
    from due, unnest(
        %(entrypoints)s::text[], %(max_attempts)s::int[], %(backoffs)s::interval[], %(max_backoffs)s::interval[],
        %(timeouts)s::interval[]
    ) as e (entrypoint, max_attempts, backoff, max_backoff, timeout)
    where r.id = due.id and e.entrypoint = r.entrypoint
        and not exists (
            select from pgsched.limit_members m where m.entrypoint = r.entrypoint and m.app = %(app)s and m.limited
        )
    returning r.id, r.schedule_id, r.entrypoint, r.args::text as args_json, r.fire_time, r.previous_fire_time,
        r.due_at, r.attempt, r.token, r.max_attempts, r.backoff, r.max_backoff, r.timeout
)
select o.fire_times, o.waiting, o.lines,
    (o.fire_times or o.waiting or o.lines) and exists (
        select from levels l cross join lateral (
            select from pgsched.runs r
            where r.status = 'queued' and not r.gated and r.priority = l.priority
                and r.due_at <= now() + %(lookahead)s and r.entrypoint = any(%(entrypoints)s)
                and (r.app is null or r.app = %(app)s)
                and r.id not in (select id from pgsched.resting where kind = 'run' and until > now())
            limit 1
        ) q
        where l.priority is not null
    ) as queued,
    c.*
from others o left join claimed c on true
