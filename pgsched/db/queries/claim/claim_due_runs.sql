-- Claims queued runs that are due within the lookahead: enqueued jobs, their retries, runs that were given back.
-- Runs of schedules with an overlap to check are gated; lock_gated_runs finds those.
-- The order is fairness.order()'s: due before not yet due, then priority, due time and id. Each lane gives as many runs
-- as it has room for, and the lanes of one pool together no more than the pool has. The steps are walked one by one:
-- within each the index returns the runs in order, and far-future runs are never read. The lock lies inside the walk,
-- so that workers do not queue up for the same rows.
-- - alone: claims nothing if anything else is due that may have to go first, and returns how much of each kind is due,
--   counted up to one more than the limit. If nothing else is due, a pass sends only this statement.
-- - crossing: claims nothing, and only returns these counts.
-- - bytes: the arguments of the runs claimed of one pool, without the last of them, are smaller than this, as stored.
-- Every start waits for this statement, and each step of its plan takes time, even if it is never executed. So each
-- view is named only once.
with recursive unclaimable as materialized (select id from pgsched.unclaimable),
refused as materialized (select id from pgsched.resting where kind = 'schedule' and until > now()),
levels (priority) as (
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
        (select count(*) from (
            select from pgsched.schedules s
            where %(alone)s::boolean and s.status = 'active' and s.entrypoint = any(%(entrypoints)s)
                and (s.app is null or s.app = %(app)s) and s.id not in (select id from refused)
                and coalesce(s.next_run, '-infinity'::timestamptz) between '1900-01-01Z' and now() + %(lookahead)s
            limit %(limit)s + 1
        ) f) as fire_times,
        %(alone)s::boolean and exists (
            select from pgsched.schedules s
            where s.status = 'active' and s.entrypoint = any(%(known)s)
                and (s.app is null or s.app = %(app)s) and s.id not in (select id from refused)
                and coalesce(s.next_run, '-infinity'::timestamptz) = '-infinity'
        ) as unplanned,
        (select count(*) from (
            select from pgsched.runs r
            where %(alone)s::boolean and r.status = 'queued' and r.gated and r.line is null
                and r.due_at <= now() + %(lookahead)s and r.entrypoint = any(%(entrypoints)s)
                and (r.app is null or r.app = %(app)s)
                and r.id not in (select id from unclaimable)
            limit %(limit)s + 1
        ) w) as waiting,
        -- Due or not: finding out would step over all urgent runs that are not due.
        %(alone)s::boolean and exists (
            select from unnest(%(entrypoints)s::text[]) as e (entrypoint) cross join lateral (
                select from pgsched.runs r
                where r.status = 'queued' and r.gated and r.line is not null and r.limited_by = %(app)s
                    and r.entrypoint = e.entrypoint
                order by -r.priority limit 1  -- the order of the entrypoint's own index
            ) l
        ) as lines
),
lanes as materialized (
    select g.room, g.pool, g.pool_room, array_agg(g.entrypoint) as names
    from unnest(%(entrypoints)s::text[], %(lanes)s::int[], %(rooms)s::int[], %(pools)s::int[], %(pool_rooms)s::int[])
        as g (entrypoint, lane, room, pool, pool_room)
    group by g.lane, g.room, g.pool, g.pool_room
),
steps as materialized (
    select t.first, t.last, l.priority
    from levels l
    cross join (values ('-infinity', now()), (now() + interval '1 us', now() + %(lookahead)s)) as t (first, last)
    where l.priority is not null
    order by t.first, l.priority desc
),
found as materialized (
    select r.id, r.priority, r.due_at, r.size, g.pool, g.pool_room
    from lanes g
    cross join lateral (
        select r.id, r.priority, r.due_at, r.size
        from steps t
        cross join lateral (
            select r.id, r.priority, r.due_at, pg_column_size(r.args) as size  -- as stored: nothing is unpacked
            from pgsched.runs r
            where r.status = 'queued' and not r.gated and r.priority = t.priority
                and r.due_at between t.first and t.last
                and r.entrypoint = any(g.names) and (r.app is null or r.app = %(app)s)
                and r.id not in (select id from unclaimable)
            order by r.due_at, r.id
            limit g.room
            for no key update skip locked
        ) r
        limit g.room
    ) r
    where not (select %(crossing)s::boolean or o.fire_times + o.waiting > 0 or o.unplanned or o.lines from others o)
),
-- Through an array, because the planner expects an array to be short. For an unknown LIMIT it assumes a tenth of the
-- queue and would scan the table.
due as materialized (
    select unnest(array(
        select f.id
        from (
            select f.*, row_number() over ranked as place, sum(f.size) over ranked - f.size as before
            from found f
            window ranked as (partition by f.pool order by f.due_at > now(), f.priority desc, f.due_at, f.id
                rows unbounded preceding)
        ) f
        where f.place <= f.pool_room and f.before < %(bytes)s
        order by f.due_at > now(), f.priority desc, f.due_at, f.id
        limit %(limit)s
    )) as id
),
-- Queued before their entrypoint had limits: these runs move to its lines and are not claimed.
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
        schedule_version = case
            when r.schedule_id is null or r.origin is not null or r.attempt > 0 or r.stops is not null or r.errors <> '[]'
            then null else (select s.version from pgsched.schedules s where s.id = r.schedule_id) end,
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
select o.unplanned, o.fire_times, o.waiting, o.lines,
    (select count(*) from (
        select from levels l cross join lateral (
            select from pgsched.runs r
            where r.status = 'queued' and not r.gated and r.priority = l.priority
                and r.due_at <= now() + %(lookahead)s and r.entrypoint = any(%(entrypoints)s)
                and (r.app is null or r.app = %(app)s)
                and r.id not in (select id from unclaimable)
            limit %(limit)s + 1
        ) q
        where l.priority is not null
            and (%(crossing)s::boolean or o.fire_times + o.waiting > 0 or o.unplanned or o.lines)
        limit %(limit)s + 1
    ) q) as queued,
    c.*
from others o left join claimed c on true
