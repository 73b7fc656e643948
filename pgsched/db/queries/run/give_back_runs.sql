-- Gives back runs of fire times that this worker claimed and never began, each under its claim.
-- If the claim is withdrawn, the fire time goes back to the schedule, or is recorded as missed. Otherwise the run goes
-- back to the queue, or is cancelled if somebody asked for that. The schedule is locked, so that neither a change nor a
-- plan of it interferes. If somebody else has locked the run or the schedule, the run is left for the next try. Returns
-- the runs that landed.
-- If the worker dies before this, a reaper answers for it; if the answer is lost, the next try finds no claim.
with mine as materialized (
    select r.*
    from unnest(%(ids)s::bigint[], %(tokens)s::bigint[]) as g (id, token)
    cross join lateral (
        select r.id, r.token, r.schedule_id, r.fire_time, r.previous_fire_time, r.schedule_version, r.cancel_requested_at
        from pgsched.runs r
        where r.id = g.id and r.token = g.token and r.worker = %(worker)s and r.status = 'running'
        for no key update skip locked
    ) r
),
locked as materialized (
    select s.id, s.version, s.timed_version, s.timed_at
    from pgsched.schedules s
    where s.id = any(array(select m.schedule_id from mine m where m.schedule_version is not null))
    order by s.id
    for no key update skip locked
),
judged as materialized (
    select m.*,
        case when m.schedule_version is null or m.cancel_requested_at is not null then 'queue'
            when s.id is null then 'gone'
            when not pgsched.withdrawn(m.schedule_version, m.fire_time, s.version, s.timed_version, s.timed_at) then 'queue'
            when m.schedule_version >= s.timed_version then 'fire time'
            when m.fire_time > s.timed_at then 'new timing'
            else 'passed' end as fate
    from mine m
    left join locked s on s.id = m.schedule_id
    where m.schedule_version is null or s.id is not null
        or not exists (select from pgsched.schedules x where x.id = m.schedule_id)
),
kept as (
    update pgsched.runs r
    set status = case when j.fate = 'passed' then 'skipped' when j.cancel_requested_at is not null then 'cancelled'
                      else 'queued' end,
        attempt = r.attempt - 1,
        finished_at = case when j.fate = 'passed' or j.cancel_requested_at is not null then clock_timestamp() end,
        reason = case when j.fate = 'passed' then 'missed' when j.cancel_requested_at is not null
                      then coalesce(r.reason, 'cancelled on request') end,
        detail = case when j.fate = 'passed' then 'its schedule was changed before it had begun' else r.detail end,
        skipped_count = case when j.fate = 'passed' then 1 end,
        skipped_through = case when j.fate = 'passed' then r.fire_time end
    from judged j
    where r.id = j.id and j.fate in ('queue', 'passed')
),
dropped as (
    delete from pgsched.runs r using judged j
    where r.id = j.id and j.fate in ('fire time', 'new timing', 'gone') and not %(stay)s::boolean
    returning r.id
),
-- If the database does not delete the row (a foreign key, a trigger, even a silent one), it stays as a withdrawn one
-- and blocks no other.
stayed as (
    update pgsched.runs r
    set status = 'cancelled', attempt = r.attempt - 1, worker = null, withdrawn_at = clock_timestamp(),
        finished_at = clock_timestamp(), reason = 'its schedule was changed before it had begun'
    from judged j
    where r.id = j.id and j.fate in ('fire time', 'new timing', 'gone') and j.id not in (select id from dropped)
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
        -- A new timing has none yet, unless it names the same single instant.
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
)
select j.id, j.token, pg_catalog.pg_notify(%(channel)s, '') from judged j
