-- Takes silent claims away: only the very claim that was seen, with the very heartbeat that was seen.
-- A beat or finish that comes in between wins, and one that holds the row right now is left alone.
-- The holder of a withdrawn claim is dead, so this statement answers for it. If the schedule goes on with its timing,
-- the run is queued again like any lost one, as the schedule is now, or cancelled if somebody asked for that. Otherwise
-- the row is cancelled and stays, because its function may have been called, and its fire time is given back, unless a
-- later change of the timing has passed it. The schedule is locked; if somebody else has it locked, the run is left for
-- the next look.
with verdicts as (
    select * from unnest(%(ids)s::bigint[], %(tokens)s::bigint[], %(beats)s::timestamptz[], %(statuses)s::text[],
                         %(delays)s::float8[], %(messages)s::text[])
        as v (id, token, heartbeat_at, status, delay, message)
),
stalled as materialized (
    select r.id, r.schedule_id, r.fire_time, r.previous_fire_time, v.delay, v.message, o.other,
        case when r.started_at is null then r.schedule_version end as schedule_version,
        case when v.status <> 'queued' then v.status when r.cancel_requested_at is not null then 'cancelled'
            when o.other > 0 then 'failed' else 'queued' end as status
    from verdicts v
    join pgsched.runs r on r.id = v.id and r.token = v.token and r.heartbeat_at is not distinct from v.heartbeat_at
    cross join lateral (
        -- Null: it is not certain yet whether another run with its key waits. The next look asks again.
        select case when v.status = 'queued' and r.unique_key is not null and r.unique_while = 'waiting'
            and r.cancel_requested_at is null then pgsched.waiting_instead(r.id,
                array(select x.id from verdicts x where x.status = 'queued')) else 0 end as other
    ) o
    where r.status = 'running' and o.other is not null
    order by r.id
    for no key update of r skip locked
),
locked as materialized (
    select s.id, s.version, s.timed_version, s.timed_at,
        -- The plan of its last fire time finished it; nobody has stopped it.
        s.status = 'active' or s.status = 'finished' and s.retired_at is null and not s.closed as goes_on
    from pgsched.schedules s
    where s.id = any(array(select x.schedule_id from stalled x where x.schedule_version is not null))
    order by s.id
    for no key update skip locked
),
judged as materialized (
    select x.*,
        case when x.schedule_version is null or x.status = 'cancelled' then 'loss'
            when s.id is null then 'gone'
            when not pgsched.withdrawn(x.schedule_version, x.fire_time, s.version, s.timed_version, s.timed_at) then 'loss'
            when x.schedule_version >= s.timed_version and s.goes_on then 'follow'
            when x.schedule_version >= s.timed_version then 'fire time'
            when x.fire_time > s.timed_at then 'new timing'
            else 'passed' end as fate
    from stalled x
    left join locked s on s.id = x.schedule_id
    where x.schedule_version is null or s.id is not null
        or not exists (select from pgsched.schedules y where y.id = x.schedule_id)
),
reaped as (
    update pgsched.runs r
    set status = case when j.fate in ('loss', 'follow') then j.status else 'cancelled' end,
        reason = case when j.fate not in ('loss', 'follow') then 'its schedule was changed, and its worker is dead'
                      when j.status = 'cancelled' then coalesce(r.reason, 'cancelled on request')
                      when j.other > 0 then 'run ' || j.other || ' with its unique key is waiting' else r.reason end,
        withdrawn_at = case when j.fate in ('fire time', 'new timing', 'gone') then clock_timestamp() end,
        worker = null,
        -- A run that was claimed ahead does not become due earlier because its worker died.
        due_at = case when j.fate in ('loss', 'follow') and j.status = 'queued'
                      then greatest(r.due_at, clock_timestamp() + j.delay * interval '1 second') else r.due_at end,
        finished_at = case when j.fate not in ('loss', 'follow') or j.status <> 'queued' then clock_timestamp() end,
        errors = pgsched.appended(r.errors, jsonb_build_object(
            'attempt', r.attempt, 'at', clock_timestamp(), 'type', 'WorkerLost', 'message', j.message,
            'traceback', '', 'worker', r.worker, 'started_at', r.started_at)),
        entrypoint = coalesce(f.entrypoint, r.entrypoint),
        args = coalesce(f.args, r.args),
        timeout = case when f.id is null then r.timeout else f.timeout end,
        gated = case when f.id is null then r.gated else f.overlap <> 'allow' or f.line is not null end,
        line = case when f.id is null then r.line else f.line end,
        limited_by = case when f.id is null then r.limited_by else f.limited_by end
    from judged j
    left join lateral (
        select s.id, s.entrypoint, s.args, s.timeout, s.overlap, l.app as limited_by,
            case when l.app is not null then pgsched.line_for(s.entrypoint, s.args, s.id, s.overlap, l.app) end as line
        from pgsched.schedules s
        cross join lateral (select pgsched.limiting_app(s.entrypoint, s.app) as app) l
        where s.id = j.schedule_id and j.fate = 'follow'
    ) f on true
    where r.id = j.id
    returning r.id, r.schedule_id, r.status, r.fire_time
),
back as (
    select j.schedule_id, count(*) as number, min(j.fire_time) as first,
        min(j.fire_time) filter (where j.fate = 'fire time') as due,
        (array_agg(j.previous_fire_time order by j.fire_time))[1] as before
    from judged j where j.fate in ('fire time', 'new timing') group by 1
),
opened as (
    update pgsched.schedules s
    set next_run = case when s.status = 'finished' and (s.retired_at is not null or s.closed) then s.next_run
                        when s.next_run is null and s.status = 'active' then null
                        else least(b.due, s.next_run) end,
        -- As in give_back_runs: a new timing has none yet, unless it names the same single instant.
        accounted_through = case when s.accounted_through is not null
            then least(s.accounted_through, b.first - interval '1 microsecond') end,
        next_wall = null,
        accounted_wall = null,
        status = case when s.status = 'finished' and s.retired_at is null and not s.closed then 'active' else s.status end,
        note = case when s.status = 'finished' and s.retired_at is null and not s.closed then null else s.note end,
        run_count = greatest(0, s.run_count - b.number),
        last_run = case when s.last_run >= b.first then b.before else s.last_run end,
        planned_at = greatest(clock_timestamp(), s.planned_at + interval '1 microsecond')
    from back b
    where s.id = b.schedule_id
),
unremoved as (
    update pgsched.removed d
    set accounted_through = least(d.accounted_through, j.first - interval '1 microsecond')
    from (select schedule_id, min(fire_time) as first from judged where fate = 'gone' group by 1) j
    where d.schedule_id = j.schedule_id
),
-- As in finish_runs: a schedule that somebody has locked is passed over.
last_ends as (
    select s.id, l.status
    from (
        select distinct on (schedule_id) schedule_id, status from reaped
        where schedule_id is not null and status <> 'queued' and schedule_id not in (select schedule_id from back)
        order by schedule_id, fire_time desc
    ) l
    join pgsched.schedules s on s.id = l.schedule_id
    where s.last_status is distinct from l.status
    for no key update of s skip locked
),
note_last as (
    update pgsched.schedules s
    set last_status = last_ends.status, planned_at = coalesce(s.planned_at + interval '1 microsecond', clock_timestamp())
    from last_ends where s.id = last_ends.id
)
select r.id, r.status, case when r.status <> 'queued' then pg_catalog.pg_notify(%(channel)s, '') end from reaped r
