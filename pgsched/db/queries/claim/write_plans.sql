-- Advances locked schedules and makes their runs and skips, all or nothing.
-- Runs due by the horizon are claimed at once. Later ones (jitter), and those that wait for others of their schedule or
-- at the limits of their entrypoint, are queued. A fire time that already has a run keeps it and gets no second one.
-- A skip extends the schedule's skip before it if the same live run caused both, and the schedule was accounted for
-- exactly up to that skip (the join reads the schedule as it was). Otherwise a stuck run of an every-second schedule
-- would make 86,400 rows a day. If somebody has locked the earlier skip, a new row begins.
with news as materialized (
    select p.*, k.id as before, k.skipped_through >= p.through as known,
        p.reason = 'overlap' and k.reason = p.reason and k.detail = p.detail and k.skipped_through = s.accounted_through
            and k.skipped_through < p.fire_time and count(*) over (partition by p.schedule_id) = 1 as goes_on
    from unnest(
        %(skip_schedule_ids)s::bigint[], %(skip_fire_times)s::timestamptz[], %(skip_throughs)s::timestamptz[],
        %(skip_counts)s::bigint[], %(skip_reasons)s::text[], %(skip_details)s::text[]
    ) as p (schedule_id, fire_time, through, skipped_count, reason, detail)
    join pgsched.schedules s on s.id = p.schedule_id
    left join lateral (
        select * from pgsched.runs k
        where k.schedule_id = p.schedule_id and k.status = 'skipped' and k.fire_time <= p.fire_time
        order by k.fire_time desc limit 1
        for no key update skip locked
    ) k on true
),
grown as (
    update pgsched.runs k
    set skipped_through = n.through, skipped_count = k.skipped_count + n.skipped_count, finished_at = clock_timestamp()
    from news n
    where k.id = n.before and n.goes_on
),
skipped as (
    insert into pgsched.runs (schedule_id, app, entrypoint, args, fire_time, due_at, status, reason, detail,
                              skipped_count, skipped_through, finished_at)
    select s.id, s.app, s.entrypoint, s.args, n.fire_time, n.fire_time, 'skipped', n.reason, n.detail,
           n.skipped_count, n.through, clock_timestamp()
    from news n join pgsched.schedules s on s.id = n.schedule_id
    -- If a client set next_run back, a skip is recorded again only if it reaches further than the recorded one.
    where (n.known or n.goes_on) is not true
),
made as (
    insert into pgsched.runs (schedule_id, app, entrypoint, args, fire_time, previous_fire_time, due_at, priority,
                              max_attempts, backoff, max_backoff, timeout, gated, limited_by, line,
                              status, attempt, token, schedule_version, worker, claimed_at, heartbeat_at)
    select s.id, s.app, s.entrypoint, s.args, p.fire_time, p.previous, p.due_at, s.priority,
           p.max_attempts, p.backoff, p.max_backoff, p.timeout, s.overlap <> 'allow' or l.app is not null,
           l.app,
           case when l.app is null then null when s.overlap <> 'allow' then 's' || s.id
                else 'k' || pgsched.key_of(s.args, l.concurrency_key) end,
           case when c.claimed then 'running' else 'queued' end, c.claimed::int,
           case when c.claimed then pgsched.next_token() else 0 end, case when c.claimed then s.version end,
           case when c.claimed then %(worker)s::uuid end,
           case when c.claimed then clock_timestamp() end, case when c.claimed then clock_timestamp() end
    from unnest(
        %(run_schedule_ids)s::bigint[], %(fire_times)s::timestamptz[], %(due_ats)s::timestamptz[],
        %(previous)s::timestamptz[], %(waits)s::boolean[], %(max_attempts)s::int[], %(backoffs)s::interval[],
        %(max_backoffs)s::interval[], %(timeouts)s::interval[]
    ) as p (schedule_id, fire_time, due_at, previous, waits, max_attempts, backoff, max_backoff, timeout)
    join pgsched.schedules s on s.id = p.schedule_id
    left join (
        select m.app, m.entrypoint, g.concurrency_key
        from pgsched.limit_members m join pgsched.limits g on g.gate = m.gate
        where m.app = %(app)s and m.limited
    ) l on l.entrypoint = s.entrypoint
    cross join lateral (
        select not p.waits and l.app is null and p.due_at <= %(horizon)s::timestamptz as claimed
    ) c
    on conflict (schedule_id, fire_time, again) where status <> 'skipped' and schedule_id is not null and withdrawn_at is null
        do nothing
    returning id, schedule_id, fire_time, status, token
),
advanced as (
    update pgsched.schedules s
    set next_run = case when f.short then null else p.next_run end,
        last_run = greatest(p.last_run, s.last_run),
        run_count = s.run_count + f.made,
        status = case when f.short then 'active' else p.status end,
        note = case when f.short then s.note else coalesce(p.note, s.note) end,
        accounted_through = coalesce(p.accounted_through, s.accounted_through),
        interruptions = '[]',
        zone_rules = p.rules,
        next_wall = p.next_wall,
        accounted_wall = coalesce(p.wall, s.accounted_wall),
        moved_from = null,
        planned_at = greatest(clock_timestamp(), s.planned_at + interval '1 microsecond')
    from unnest(
        %(schedule_ids)s::bigint[], %(next_runs)s::timestamptz[], %(last_runs)s::timestamptz[],
        %(run_counts)s::int[], %(statuses)s::text[], %(notes)s::text[], %(accounted)s::timestamptz[],
        %(rules)s::text[], %(next_walls)s::timestamp[], %(walls)s::timestamp[]
    ) as p (id, next_run, last_run, run_count, status, note, accounted_through, rules, next_wall, wall)
    left join (select schedule_id, count(*) as number from made group by 1) m on m.schedule_id = p.id
    cross join lateral (select coalesce(m.number, 0) as made) n
    cross join lateral (
        -- A fire time that already had a run adds none, but the plan counted it towards max_runs.
        select n.made, p.status = 'finished' and n.made < p.run_count and q.run_count + n.made < q.max_runs as short
        from pgsched.schedules q where q.id = p.id
    ) f
    where s.id = p.id
)
select id, schedule_id, fire_time, token from made where status = 'running'
