-- A change never takes a claim away: the holder answers. The versions of a schedule and of a claim say whether the claim
-- was made before the change. A claim of a fire time that has not begun and whose schedule has changed since (or is
-- gone) is withdrawn. The holder hears that in the answer to a beat. It drops the run and gives the fire time back, or
-- the run has begun, and the row says so (started_at). For a dead holder a reaper answers. Until the answer nobody plans
-- that schedule, so no instant and no delay decides whether a function is called.

alter table pgsched.schedules
    add column version bigint not null default 1,
    add column timed_version bigint not null default 1,
    add column closed boolean not null default false;
comment on column pgsched.schedules.version is 'Grows with each change by a client.';
comment on column pgsched.schedules.timed_version is
    'The version of the last change of its timing: expression, zone, bounds, max_runs, or next_run by a client.';
comment on column pgsched.schedules.closed is
    'A client has set it to finished. False on a finished one: a plan has, after its last fire time.';
comment on column pgsched.schedules.planned_at is
    'When a worker last wrote here. It grows with each write of a worker; a write under which it does not grow is a client''s.';

alter table pgsched.runs
    add column schedule_version bigint,
    add column withdrawn_at pgsched.instant;
comment on column pgsched.runs.schedule_version is
    'The version of its schedule when its fire time was claimed. Null: no claim of it can be withdrawn (a job, a trigger, a backfill, a run that has begun before).';
comment on column pgsched.runs.withdrawn_at is
    'When a reaper gave its fire time back, because its schedule had changed and its holder was dead. Whether its function was called is not known.';

drop index pgsched.runs_one_per_fire_time;
create unique index runs_one_per_fire_time on pgsched.runs (schedule_id, fire_time, again)
    where status <> 'skipped' and schedule_id is not null and withdrawn_at is null;
comment on index pgsched.runs_one_per_fire_time is 'No fire time has two runs, whatever workers, clocks and retries do.';

create table pgsched.removed (
    schedule_id       bigint primary key,
    name              text not null,
    accounted_through pgsched.instant not null,
    removed_at        timestamptz not null default clock_timestamp()
);
create index removed_name on pgsched.removed (name);
comment on table pgsched.removed is
    'One row a removed schedule with fire times that were claimed ahead. A new schedule of its name starts after these. Kept for a day.';
comment on column pgsched.removed.schedule_id is 'The id that it had.';
comment on column pgsched.removed.name is 'The name that it had.';
comment on column pgsched.removed.accounted_through is 'Fire times up to here were claimed. A claim that is dropped sets it back.';
comment on column pgsched.removed.removed_at is 'When it was removed.';

-- One change of the timing does not withdraw what had come due under the old one; a second change does.
create function pgsched.withdrawn(
    claimed bigint, fire_time timestamptz, version bigint, timed_version bigint, timed_at timestamptz
) returns boolean language sql immutable parallel safe
    return claimed <> version and not (timed_version = version and claimed = version - 1 and fire_time <= timed_at);
comment on function pgsched.withdrawn(bigint, timestamptz, bigint, bigint, timestamptz) is
    'Whether a claim that has not begun is withdrawn: by its schedule_version and fire_time, and the schedule''s version, timed_version and timed_at.';

-- --- what a client's change means ------------------------------------------------------------------------

drop trigger schedule_changed_at_commit on pgsched.schedules;
drop trigger schedule_removed_at_commit on pgsched.schedules;
drop trigger schedule_changed on pgsched.schedules;
drop trigger schedule_removed on pgsched.schedules;
drop function pgsched.drop_unstarted();

create function pgsched.bounded(entries jsonb) returns jsonb
    language plpgsql immutable security invoker set search_path = pg_catalog, pg_temp as $$
declare
    earlier int;
    later int;
begin
    -- The oldest two of a kind become one that ends when the later did: the time that they cover stays covered.
    while jsonb_array_length(entries) > 50 loop
        select a.place, b.place into earlier, later
        from generate_series(0, 4) as b (place) cross join generate_series(0, 4) as a (place)
        where a.place < b.place and entries -> a.place ->> 'kind' = entries -> b.place ->> 'kind'
        order by b.place, a.place desc limit 1;
        exit when later is null;
        entries := jsonb_set(entries, array[earlier::text, 'through'], entries -> later -> 'through') - later;
    end loop;
    return entries;
end $$;
comment on function pgsched.bounded(jsonb) is 'A schedule''s interruptions, at most fifty: the oldest ones are merged.';

create or replace function pgsched.schedule_changed() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    now_ timestamptz := clock_timestamp();
    retimed boolean := (new.expression, new.timezone, new.starts_at, new.ends_at, new.max_runs)
        is distinct from (old.expression, old.timezone, old.starts_at, old.ends_at, old.max_runs);
    -- Whether fire times may have passed that are neither a run nor a recorded skip yet.
    behind boolean := old.status in ('active', 'paused') and coalesce(old.next_run, '-infinity'::timestamptz) <= now_;
    resumed boolean := old.status = 'paused' and new.status <> 'paused';
    -- A pause ends when it was said to end, although nobody was there to notice.
    resumed_at timestamptz := least(now_, old.paused_until);
    entries jsonb;
begin
    if new.planned_at is distinct from old.planned_at then
        -- A row that was read before the last plan and is written back whole: the workers' columns stay as they are.
        new.planned_at := old.planned_at;
        new.next_run := old.next_run;
        new.accounted_through := old.accounted_through;
        new.interruptions := old.interruptions;
        new.run_count := old.run_count;
        new.last_run := old.last_run;
        new.last_status := old.last_status;
        new.timed_at := old.timed_at;
        new.zone_rules := old.zone_rules;
        new.next_wall := old.next_wall;
        new.accounted_wall := old.accounted_wall;
        new.moved_from := old.moved_from;
    end if;
    new.version := old.version + 1;
    new.timed_version := case when retimed or new.next_run is distinct from old.next_run then new.version
                              else old.timed_version end;
    new.updated_at := now_;
    entries := new.interruptions;

    -- What has passed is judged by what held then: a pause first, then the timing that is replaced. A claim that the
    -- pause has withdrawn may be dropped after its instant: then the pause is the reason.
    if old.status = 'paused' and not new.backlog and (resumed or retimed) and (behind or exists (
        select from pgsched.runs r
        where r.status = 'running' and r.schedule_id = old.id and r.schedule_version is not null and r.started_at is null
    )) then
        entries := entries || jsonb_build_object(
            'kind', 'paused', 'since', old.paused_at, 'through', case when resumed then resumed_at else now_ end,
            'note', old.note);
    end if;
    if old.retired_at is not null and new.retired_at is null and not retimed then
        entries := entries || jsonb_build_object(
            'kind', 'retired', 'since', old.retired_at, 'through', now_);
    end if;
    if retimed then
        if behind then
            entries := entries || jsonb_build_object(
                'kind', 'changed', 'since', old.timed_at, 'through', now_, 'accounted_through', old.accounted_through,
                'next_run', old.next_run, 'expression', old.expression, 'timezone', old.timezone,
                'starts_at', old.starts_at, 'ends_at', old.ends_at);
        end if;
        new.timed_at := now_;
        new.accounted_through := null;
        if new.next_run is not distinct from old.next_run then
            new.next_run := null;
            if old.status in ('invalid', 'finished') and new.status = old.status and new.retired_at is null then
                new.status := 'active';
                new.note := null;
            end if;
        end if;
    end if;
    if entries is distinct from old.interruptions then
        new.interruptions := pgsched.bounded(entries);
    end if;

    if new.status <> 'finished' then
        new.closed := false;
    elsif old.status <> 'finished' then
        new.closed := true;
    end if;
    if new.status = 'paused' and old.status <> 'paused' then
        new.paused_at := now_;
        new.resumed_at := null;
    elsif new.status = 'active' and old.status <> 'active' then
        if resumed then
            new.resumed_at := resumed_at;
        end if;
        new.paused_until := null;
        new.backlog := false;
        if new.note is not distinct from old.note then
            new.note := null;
        end if;
    end if;

    perform pg_notify(tg_table_schema, '');
    return new;
end $$;
comment on function pgsched.schedule_changed() is
    'A client changed a schedule: counts its version, has next_run planned anew if its timing changed, notes what the next plan has to settle, wakes the workers.';

create function pgsched.schedule_followed() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    retimed boolean := (new.expression, new.timezone, new.starts_at, new.ends_at, new.max_runs)
        is distinct from (old.expression, old.timezone, old.starts_at, old.ends_at, old.max_runs);
    dropped bigint;
    first timestamptz;
    before_first timestamptz;
begin
    -- Queued and never begun: nobody's claim, and so nobody's answer is needed. A worker that claims one just now has
    -- its row locked. We wait for it, find the row running, and leave it to its holder.
    with gone as (
        delete from pgsched.runs r
        where r.id = any (array(
                select q.id from pgsched.runs q
                where q.schedule_id = new.id and q.status = 'queued' and q.origin is null and q.attempt = 0
                    and q.started_at is null and q.stops is null and q.errors = '[]' and q.due_at > clock_timestamp()
                    and (not retimed or q.fire_time > new.timed_at)))
            and r.status = 'queued' and r.attempt = 0
        returning r.fire_time, r.previous_fire_time
    )
    select count(*), min(fire_time), (array_agg(previous_fire_time order by fire_time))[1]
    into dropped, first, before_first from gone;
    if dropped > 0 then
        update pgsched.schedules s
        set next_run = case
                when s.status = 'finished' and (s.retired_at is not null or s.closed) then null
                when s.next_run is null and s.status = 'active' then null  -- is planned anew
                when s.timed_version = s.version then s.next_run
                else least(first, s.next_run)
            end,
            -- A new timing counts from its change on; under the old one this fire time is open again.
            accounted_through = case when retimed then s.accounted_through
                else least(s.accounted_through, first - interval '1 microsecond') end,
            -- Planning its last fire time had finished it.
            status = case when s.status = 'finished' and s.retired_at is null and not s.closed
                     then 'active' else s.status end,
            note = case when s.status = 'finished' and s.retired_at is null and not s.closed then null else s.note end,
            next_wall = null,
            accounted_wall = null,
            run_count = greatest(0, s.run_count - dropped),
            last_run = before_first,
            planned_at = greatest(clock_timestamp(), s.planned_at + interval '1 microsecond')
        where s.id = new.id;
    end if;

    -- What goes on waiting waits by the new overlap, and for the new entrypoint: nobody may be left who has the old one.
    if new.overlap <> old.overlap or new.entrypoint <> old.entrypoint then
        update pgsched.runs r
        set entrypoint = new.entrypoint,
            args = case when new.entrypoint <> old.entrypoint then new.args else r.args end,
            timeout = case when new.entrypoint <> old.entrypoint then new.timeout else r.timeout end,
            gated = new.overlap <> 'allow' or l.line is not null,
            line = l.line,
            limited_by = l.app
        from (
            select q.id, a.app, case when a.app is not null then pgsched.line_for(
                new.entrypoint, case when new.entrypoint <> old.entrypoint then new.args else q.args end, new.id,
                new.overlap, a.app) end as line
            from pgsched.runs q
            cross join lateral (select pgsched.limiting_app(new.entrypoint, new.app) as app) a
            where q.schedule_id = new.id and q.status = 'queued'
        ) l
        where r.id = l.id and r.status = 'queued';
    end if;
    return null;
end $$;
comment on function pgsched.schedule_followed() is
    'A client changed a schedule: its queued fire times that are still to come are planned anew, its other queued runs follow a new overlap and entrypoint. Claimed runs are their holders''.';

create function pgsched.schedule_removed() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    first timestamptz;
    accounted timestamptz;
begin
    with gone as (
        delete from pgsched.runs r
        where r.id = any (array(
                select q.id from pgsched.runs q
                where q.schedule_id = old.id and q.status = 'queued' and q.origin is null and q.attempt = 0
                    and q.started_at is null and q.stops is null and q.errors = '[]' and q.due_at > clock_timestamp()))
            and r.status = 'queued' and r.attempt = 0
        returning r.fire_time
    )
    select min(fire_time) into first from gone;
    update pgsched.runs r
    set status = 'cancelled', reason = 'schedule removed', finished_at = clock_timestamp()
    where r.id = any (array(select q.id from pgsched.runs q where q.schedule_id = old.id and q.status = 'queued'))
        and r.status = 'queued';
    -- A claim of a fire time to come is withdrawn now. If it has begun before its holder hears of that, a new schedule
    -- of this name must not run it again.
    accounted := least(old.accounted_through, first - interval '1 microsecond');
    if accounted >= clock_timestamp() then
        delete from pgsched.removed d where d.removed_at < clock_timestamp() - interval '1 day';
        insert into pgsched.removed (schedule_id, name, accounted_through) values (old.id, old.name, accounted)
        on conflict (schedule_id) do nothing;
    end if;
    perform pg_notify(tg_table_schema, '');
    return null;
end $$;
comment on function pgsched.schedule_removed() is
    'A schedule was removed: its queued runs go with it. Claimed runs are their holders'': they drop those that have not begun.';

create function pgsched.schedules_truncated() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    update pgsched.runs r
    set status = 'cancelled', reason = 'schedule removed', finished_at = clock_timestamp()
    where r.status = 'queued' and r.schedule_id is not null;
    perform pg_notify(tg_table_schema, '');
    return null;
end $$;
comment on function pgsched.schedules_truncated() is 'All schedules were removed: their queued runs are cancelled.';

-- A worker's write is one under which planned_at grows.
create trigger schedule_changed before update on pgsched.schedules
    for each row when (
        old.* is distinct from new.*
        and not coalesce(new.planned_at > old.planned_at, old.planned_at is null and new.planned_at is not null)
    ) execute function pgsched.schedule_changed();
create trigger schedule_followed after update on pgsched.schedules
    for each row when (new.version <> old.version) execute function pgsched.schedule_followed();
create trigger schedule_removed after delete on pgsched.schedules
    for each row execute function pgsched.schedule_removed();
create trigger schedules_truncated after truncate on pgsched.schedules
    for each statement execute function pgsched.schedules_truncated();

-- --- runs that are queued again --------------------------------------------------------------------------

create function pgsched.run_queued_again() returns trigger
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
begin
    new.committed_at := null;
    new.reported_at := null;
    return new;
end $$;
comment on function pgsched.run_queued_again() is
    'A run is queued again whose transaction had committed: that success is an earlier attempt''s, and no more the run''s.';
create trigger run_queued_again before update on pgsched.runs
    for each row when (new.status = 'queued' and old.status <> 'queued' and new.committed_at is not null)
    execute function pgsched.run_queued_again();

drop trigger run_changed on pgsched.runs;
create trigger run_changed after update on pgsched.runs
    for each row when (
        (new.status = 'queued' and (old.status <> 'queued' or new.due_at < old.due_at or new.entrypoint <> old.entrypoint))
        or (new.cancel_requested_at is not null and old.cancel_requested_at is null)
    ) execute function pgsched.wake_workers();

-- --- the interface ---------------------------------------------------------------------------------------

create or replace function pgsched.trigger(name text) returns bigint
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
declare
    made bigint;
    now_ timestamptz;
begin
    for turn in 1 .. 100 loop
        now_ := clock_timestamp();
        insert into pgsched.runs (schedule_id, entrypoint, args, fire_time, previous_fire_time, due_at, priority,
                                  max_attempts, backoff, max_backoff, timeout, origin, app)
        select s.id, s.entrypoint, s.args, now_, s.last_run, now_, s.priority,
               s.max_attempts, s.backoff, s.max_backoff, s.timeout, 'trigger', s.app
        from pgsched.schedules s
        where s.name = trigger.name
        -- A removal that is under way is waited for: a run of a schedule that is gone would wait for ever.
        for key share of s
        -- Somebody else's at the same microsecond: this one is the next.
        on conflict (schedule_id, fire_time, again)
            where status <> 'skipped' and schedule_id is not null and withdrawn_at is null do nothing
        returning id into made;
        if made is not null then
            return made;
        elsif not exists (select from pgsched.schedules s where s.name = trigger.name) then
            perform pgsched.no_schedule(name);
        end if;
    end loop;
    raise exception 'Schedule "%" could not be triggered: its run could not be inserted in a hundred tries. Look for a trigger or a policy on the runs table that drops it.',
        name using errcode = 'PS409';
end $$;

create or replace function pgsched.retry(run_id bigint) returns void
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
declare
    found_ record;
begin
    select r.status, r.schedule_id, r.withdrawn_at into found_ from pgsched.runs r where r.id = run_id for update;
    if found_.status is null then
        perform pgsched.no_run(run_id);
    elsif found_.status not in ('failed', 'cancelled') then
        raise exception 'Run % is %: only a failed or cancelled one can be retried.', run_id, found_.status
            using errcode = 'PS409';
    elsif found_.withdrawn_at is not null then
        raise exception 'Run % was withdrawn: its schedule has its fire time again. Use backfill to run that fire time.', run_id
            using errcode = 'PS409';
    end if;
    -- A removal that is under way is waited for, so that the run does not wait for a schedule that is gone.
    perform from pgsched.schedules s where s.id = found_.schedule_id for key share;
    update pgsched.runs r
    set status = 'queued',
        -- It may have been cancelled ahead of its fire time, before which it never starts.
        due_at = greatest(clock_timestamp(), r.fire_time),
        max_attempts = case when max_attempts is not null then greatest(max_attempts, attempt + 1) end,
        -- How the last attempt ended is told by the row itself as long as it is the last.
        stops = case when r.status = 'cancelled' and r.attempt > 0
                and (r.errors -> -1 ->> 'attempt') is distinct from r.attempt::text
                and not coalesce(r.stops @> jsonb_build_array(jsonb_build_object('attempt', r.attempt, 'final', true)), false)
            then pgsched.appended(r.stops, jsonb_build_object(
                'attempt', r.attempt, 'at', r.finished_at, 'worker', r.worker, 'started_at', r.started_at,
                'end', case when r.cancel_requested_at is null then 'discarded' else 'cancelled' end,
                'reason', r.reason, 'final', true))
            else r.stops end,
        finished_at = null, reason = null, cancel_requested_at = null, worker = null,
        committed_at = null, reported_at = null,
        gated = g.overlap <> 'allow' or g.line is not null, line = g.line, limited_by = g.limited_by
    from (
        select q.overlap, q.limited_by, pgsched.line_for(r.entrypoint, r.args, r.schedule_id, q.overlap, q.limited_by) as line
        from pgsched.runs r
        cross join lateral (
            select coalesce((select s.overlap from pgsched.schedules s where s.id = r.schedule_id), 'allow') as overlap,
                pgsched.limiting_app(r.entrypoint, r.app) as limited_by
        ) q
        where r.id = run_id
    ) g
    where r.id = run_id;
exception when unique_violation then
    raise exception 'Run % cannot be retried: a live run has its unique key.', run_id using errcode = 'PS409';
end $$;
