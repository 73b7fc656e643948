-- Queues runs of past fire times, and returns them.
-- A fire time that has a run is left alone, unless it should run again (`again`) and none of its runs is live. The
-- schedule is locked first: a worker passes over a locked one. Otherwise the worker, and all its due work, would wait
-- for an uncommitted run of the same fire time.
-- No row at all: the schedule was removed, made again or retimed, so these are no longer its fire times.
with schedule as materialized (
    select id, app, entrypoint, args, priority, max_attempts, backoff, max_backoff, timeout
    from pgsched.schedules
    where name = %(name)s::text and id = %(id)s and timed_at = %(timed_at)s
    for no key update
),
wanted as (
    select f.fire_time, f.previous, had.last
    from schedule s
    cross join unnest(%(fire_times)s::timestamptz[], %(previous)s::timestamptz[]) as f (fire_time, previous)
    cross join lateral (
        select max(r.again) as last, coalesce(bool_or(r.status in ('queued', 'running')), false) as live
        from pgsched.runs r
        where r.schedule_id = s.id and r.fire_time = f.fire_time and r.status <> 'skipped' and r.withdrawn_at is null
    ) had
    where had.last is null or (%(again)s::boolean and not had.live)
),
made as (
    insert into pgsched.runs (schedule_id, app, entrypoint, args, fire_time, previous_fire_time, due_at, priority,
                              max_attempts, backoff, max_backoff, timeout, origin, again)
    select s.id, s.app, s.entrypoint, s.args, w.fire_time, w.previous, clock_timestamp(),
        coalesce(%(priority)s::int, greatest(-100, s.priority - 10)), s.max_attempts, s.backoff, s.max_backoff, s.timeout,
        'backfill', coalesce(w.last + 1, 0)
    from wanted w
    cross join schedule s
    order by w.fire_time
    -- A run that was made after this statement's snapshot is left alone like any other.
    on conflict (schedule_id, fire_time, again)
        where status <> 'skipped' and schedule_id is not null and withdrawn_at is null do nothing
    returning id, fire_time
)
select m.id, m.fire_time from schedule s left join made m on true
