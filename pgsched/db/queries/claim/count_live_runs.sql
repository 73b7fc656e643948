-- The clock (first row), and the live runs of each locked schedule.
-- - running, waiting: how many of its fire times are running, or wait for their turn or between two attempts
-- - requested: how many are running because somebody asked for them
-- - ids: some of their ids
-- - astray: whether a waiting run has another entrypoint than its schedule has by now
-- - fire_times: those that have a run and that the schedule does not account for yet
-- - withdrawn: whether a claim of it waits for its holder's answer
-- A statement of its own, after the lock: the locking statement's snapshot would miss a run that another worker has
-- committed meanwhile.
select null::bigint as schedule_id, 0 as running, 0 as waiting, 0 as requested, null::bigint[] as ids, now() as now,
    false as astray, null::timestamptz[] as fire_times, false as withdrawn
union all
select live.schedule_id,
    (count(*) filter (where status = 'running' and origin is null))::int,
    (count(*) filter (where status = 'queued' and origin is null))::int,
    (count(*) filter (where status = 'running' and origin is not null))::int,
    (array_agg(id order by id) filter (where status = 'running' or status = 'queued' and origin is null))[1:3],
    null,
    bool_or(status = 'queued' and live.entrypoint <> s.entrypoint),
    array_agg(fire_time order by fire_time) filter (
        where origin is null and fire_time is not null and (s.accounted_through is null or fire_time > s.accounted_through
            or fire_time >= s.next_run)),  -- set back by a client
    coalesce(bool_or(status = 'running' and started_at is null
        and pgsched.withdrawn(schedule_version, fire_time, s.version, s.timed_version, s.timed_at)), false)
from (
    select id, schedule_id, status, origin, entrypoint, fire_time, started_at, schedule_version from pgsched.runs
    where status = 'running' and schedule_id = any(%(schedule_ids)s)
    union all
    select id, schedule_id, status, origin, entrypoint, fire_time, started_at, schedule_version from pgsched.runs
    where status = 'queued' and gated and schedule_id = any(%(schedule_ids)s)
    union all
    -- Runs that have ended since the plan before the last pauses and changes: their fire times are decided, and the
    -- plan judges the others of that time. They count even if there is nothing to judge: a claim that the last change
    -- withdrew may have begun before its holder heard of that, and be over.
    select r.id, r.schedule_id, 'ended', null, r.entrypoint, r.fire_time, null, null
    from unnest(%(open_ids)s::bigint[], %(open_since)s::timestamptz[]) as k (id, since)
    cross join lateral (
        select * from pgsched.runs e
        where e.schedule_id = k.id and e.fire_time > k.since and e.status <> 'skipped' and e.withdrawn_at is null
        offset 0
    ) r
    where r.status not in ('running', 'queued') and r.origin is null
    union all
    -- Attempts that have ended or lost their claim while their threads go on.
    select run_id, schedule_id, 'running', null, entrypoint, null, null, null from pgsched.left_behind
    where schedule_id = any(%(schedule_ids)s) and counts_until > now()
) live
join (
    select s.id as owner, s.entrypoint, s.accounted_through, s.next_run, s.version, s.timed_version, s.timed_at
    from pgsched.schedules s where s.id = any(%(schedule_ids)s)
) s on s.owner = live.schedule_id
group by live.schedule_id
