-- Triggers: the consequences of inserting, changing or removing a row, for every writer.
-- A wake-up is a notification on a channel with the schema's name. It carries no data and is only a hint to look.
-- Nobody may execute these functions, for they belong to the triggers alone: a role that may make a table could hang
-- them on it, and have them change the runs of any schedule.

create function pgsched.wake_workers() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform pg_notify(tg_table_schema, '');
    return null;
end $$;
comment on function pgsched.wake_workers() is 'Has the workers look, once the transaction commits.';
revoke execute on function pgsched.wake_workers() from public;

-- --- schedules -------------------------------------------------------------------------------------------

-- A change never takes a claim away: the holder answers. The versions of a schedule and of a claim say whether the
-- claim was made before the change. A claim of a fire time is withdrawn if it has not begun and its schedule has
-- changed since (or is gone). The holder hears that in the answer to a beat. It drops the run and gives the fire time
-- back; or the run has begun, and the row says so (started_at). For a dead holder a reaper answers. Until the answer
-- nobody plans that schedule, so no instant and no delay decides whether a function is called.

-- One change of the timing does not withdraw claims that had come due under the old one; a second change does.
create function pgsched.withdrawn(
    claimed bigint, fire_time timestamptz, version bigint, timed_version bigint, timed_at timestamptz
) returns boolean language sql immutable parallel safe
    return claimed <> version and not (timed_version = version and claimed = version - 1 and fire_time <= timed_at);
comment on function pgsched.withdrawn(bigint, timestamptz, bigint, bigint, timestamptz) is
    'Whether a claim that has not begun is withdrawn: by its schedule_version and fire_time, and the schedule''s version, timed_version and timed_at.';

create function pgsched.bounded(entries jsonb) returns jsonb
    language plpgsql immutable security invoker set search_path = pg_catalog, pg_temp as $$
declare
    earlier int;
    later int;
begin
    -- The oldest two of a kind become one that ends when the later did: their time stays covered.
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

create function pgsched.schedule_changed() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    now_ timestamptz := clock_timestamp();
    retimed boolean := (new.expression, new.timezone, new.starts_at, new.ends_at, new.max_runs)
        is distinct from (old.expression, old.timezone, old.starts_at, old.ends_at, old.max_runs);
    -- Whether fire times may have passed that are neither a run nor a recorded skip yet.
    behind boolean := old.status in ('active', 'paused') and coalesce(old.next_run, '-infinity'::timestamptz) <= now_;
    resumed boolean := old.status = 'paused' and new.status <> 'paused';
    -- A pause ends at the instant set for it, even if no worker was there to notice.
    resumed_at timestamptz := least(now_, old.paused_until);
    entries jsonb;
begin
    if new.planned_at is distinct from old.planned_at then
        -- The client read the row before the last plan and writes it back whole: the workers' columns stay as they are.
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

    -- Past fire times are judged by the rules of their time: a pause first, then the replaced timing. A claim that the
    -- pause has withdrawn may be dropped after its instant: then the pause is the reason.
    if old.status = 'paused' and not new.backlog and (resumed or retimed) and (behind or exists (
        select from pgsched.runs r
        where r.status = 'running' and r.schedule_id = old.id and r.schedule_version is not null and r.started_at is null
    )) then
        entries := entries || jsonb_build_object(
            'kind', 'paused', 'since', old.paused_at, 'note', old.note,
            -- A fire time at the very instant set for the end of the pause is no part of it.
            'through', case when resumed and old.paused_until <= now_ then old.paused_until - interval '1 microsecond'
                            else now_ end);
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
        -- A single instant that stays the same one is decided once, even if everything around it changes.
        if not (new.expression = old.expression and new.timezone = old.timezone and new.expression ~* '^\s*@at') then
            new.accounted_through := null;
        end if;
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
    'A client changed a schedule: counts its version, has next_run planned again if its timing changed, notes interruptions for the next plan to settle, wakes the workers.';
revoke execute on function pgsched.schedule_changed() from public;

create function pgsched.withdraw_queued(ids bigint[]) returns table (fire_time timestamptz, previous_fire_time timestamptz)
    language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
declare
    times timestamptz[] := '{}';
    befores timestamptz[] := '{}';
begin
    if ids = '{}' then
        return;
    end if;
    begin
        -- A constraint that is checked at the commit would refuse the whole transaction, and nobody can catch that.
        if exists (
            select from pg_catalog.pg_constraint c
            where c.confrelid = 'pgsched.runs'::regclass and c.contype = 'f' and c.condeferrable
        ) then
            raise exception 'somebody may refer to runs';
        end if;
        with gone as (
            delete from pgsched.runs r where r.id = any (ids) and r.status = 'queued' and r.attempt = 0
            returning r.fire_time as time, r.previous_fire_time as before
        )
        select coalesce(array_agg(g.time), '{}'), coalesce(array_agg(g.before), '{}') into times, befores from gone g;
    exception when others then
        -- Conflicts, locks, resources and operators pass, and are the client's to hear of.
        if sqlstate ~ '^(08|40|53|55|57|58)' then
            raise;
        end if;
    end;
    -- And those that a trigger has kept without a word.
    with gone as (
        update pgsched.runs r
        set status = 'cancelled', withdrawn_at = clock_timestamp(), finished_at = clock_timestamp(),
            reason = 'its schedule was changed before it had begun'
        where r.id = any (ids) and r.status = 'queued' and r.attempt = 0
        returning r.fire_time as time, r.previous_fire_time as before
    )
    select times || coalesce(array_agg(g.time), '{}'), befores || coalesce(array_agg(g.before), '{}')
    into times, befores from gone g;
    return query select * from unnest(times, befores);
end $$;
comment on function pgsched.withdraw_queued(bigint[]) is
    'Takes queued runs back that have never begun, and returns their fire times. One that the database refuses to delete stays, as a withdrawn one.';
revoke execute on function pgsched.withdraw_queued(bigint[]) from public;

create function pgsched.schedule_followed() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    retimed boolean := (new.expression, new.timezone, new.starts_at, new.ends_at, new.max_runs)
        is distinct from (old.expression, old.timezone, old.starts_at, old.ends_at, old.max_runs);
    dropped bigint;
    first timestamptz;
    before_first timestamptz;
begin
    -- Queued and never begun: nobody's claim, so nobody has to answer. A worker that claims one right now holds its row
    -- lock. We wait for it, find the row running, and leave it to its holder.
    select count(*), min(w.fire_time), (array_agg(w.previous_fire_time order by w.fire_time))[1]
    into dropped, first, before_first
    from pgsched.withdraw_queued(array(
        select q.id from pgsched.runs q
        where q.schedule_id = new.id and q.status = 'queued' and q.origin is null and q.attempt = 0
            and q.started_at is null and q.stops is null and q.errors = '[]' and q.due_at > clock_timestamp()
            -- One that has come, and that only jitter delays, is not judged again by its lateness.
            and (q.fire_time > clock_timestamp() or not (new.status = 'active'
                or new.status = 'finished' and new.retired_at is null and not new.closed))
            and (not retimed or q.fire_time > new.timed_at))) w;
    if dropped > 0 then
        update pgsched.schedules s
        set next_run = case
                when s.status = 'finished' and (s.retired_at is not null or s.closed) then null
                when s.next_run is null and s.status = 'active' then null  -- will be planned
                when s.timed_version = s.version then s.next_run
                else least(first, s.next_run)
            end,
            -- A new timing counts from its change on; under the old one this fire time is open again.
            accounted_through = case when s.accounted_through is not null
                then least(s.accounted_through, first - interval '1 microsecond') end,
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

    -- The other queued runs wait by the new overlap, and for the new entrypoint: perhaps no worker has the old one any
    -- more.
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
            -- Through an array, because the planner expects an array to be short. Of many queued runs it may expect so
            -- many in this schedule that it would read the whole table to join them with themselves.
            where q.id = any (array(
                select q.id from pgsched.runs q where q.schedule_id = new.id and q.status = 'queued'))
        ) l
        where r.id = l.id and r.status = 'queued';
    end if;
    return null;
end $$;
comment on function pgsched.schedule_followed() is
    'A client changed a schedule: its queued fire times that are still to come are planned again, its other queued runs follow a new overlap and entrypoint. Claimed runs are their holders''.';
revoke execute on function pgsched.schedule_followed() from public;

create function pgsched.schedule_moved() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    -- One snapshot: a run that goes from running to queued meanwhile is in one of the two lists, and its row is judged
    -- again after its writer's commit. Arrays, so that every session finds the rows by their ids.
    -- A run that stood in line at the old application's limits stands at those of the new one, if there are any.
    update pgsched.runs r
    set app = new.app, limited_by = l.app,
        line = case when l.app is not null
            then pgsched.line_for(r.entrypoint, r.args, r.schedule_id, new.overlap, l.app) end,
        gated = new.overlap <> 'allow' or l.app is not null
    from (
        select q.id, pgsched.limiting_app(q.entrypoint, new.app) as app from pgsched.runs q
        where q.id = any(
                array(select q.id from pgsched.runs q where q.schedule_id = new.id and q.status = 'queued')
                || array(select q.id from pgsched.runs q where q.schedule_id = new.id and q.status = 'running'))
    ) l
    where r.id = l.id and r.status in ('queued', 'running') and r.app is distinct from new.app;
    return null;
end $$;
comment on function pgsched.schedule_moved() is
    'A schedule has another application now: its queued and running runs follow, so that a retry goes to the new one.';
revoke execute on function pgsched.schedule_moved() from public;

create function pgsched.schedule_removed() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    first timestamptz;
    accounted timestamptz;
    claimed timestamptz;
begin
    select min(w.fire_time) into first
    from pgsched.withdraw_queued(array(
        select q.id from pgsched.runs q
        where q.schedule_id = old.id and q.status = 'queued' and q.origin is null and q.attempt = 0
            and q.started_at is null and q.stops is null and q.errors = '[]' and q.due_at > clock_timestamp())) w;
    update pgsched.runs r
    set status = 'cancelled', reason = 'schedule removed', finished_at = clock_timestamp()
    where r.id = any (array(select q.id from pgsched.runs q where q.schedule_id = old.id and q.status = 'queued'))
        and r.status = 'queued';
    -- A claim that has not begun is withdrawn now. If it begins before its holder hears of that, a new schedule of this
    -- name must not run it again. Jitter may put it off past its fire time. Read last: above we waited for workers that
    -- were claiming. A single instant counts as well once it has run: a deploy may remove a schedule and make it again.
    select max(r.fire_time) into claimed
    from pgsched.runs r
    where r.status = 'running' and r.schedule_id = old.id and r.schedule_version is not null and r.started_at is null;
    if old.expression ~* '^\s*@at' then
        select r.fire_time into claimed
        from pgsched.runs r
        where r.schedule_id = old.id and r.status <> 'skipped' and r.withdrawn_at is null and r.origin is null
        order by r.fire_time desc limit 1;
    end if;
    accounted := greatest(least(old.accounted_through, first - interval '1 microsecond'), claimed);
    if accounted >= clock_timestamp() or claimed is not null then
        -- Rows that another removal is just deleting are left to it.
        delete from pgsched.removed d where d.schedule_id in (
            select x.schedule_id from pgsched.removed x where x.removed_at < clock_timestamp() - interval '1 day'
            for update skip locked);
        insert into pgsched.removed (schedule_id, name, accounted_through) values (old.id, old.name, accounted)
        on conflict (schedule_id) do nothing;
    end if;
    perform pg_notify(tg_table_schema, '');
    return null;
end $$;
comment on function pgsched.schedule_removed() is
    'A schedule was removed: its queued runs go with it. Claimed runs are their holders'': they drop those that have not begun.';
revoke execute on function pgsched.schedule_removed() from public;

create function pgsched.schedules_truncated() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    update pgsched.runs r
    set status = 'cancelled', reason = 'schedule removed', finished_at = clock_timestamp()
    where r.status = 'queued' and r.schedule_id is not null;
    insert into pgsched.removed (schedule_id, name, accounted_through)
    select s.id, s.name, max(r.fire_time)
    from pgsched.runs r join pgsched.schedules s on s.id = r.schedule_id
    where r.origin is null and r.withdrawn_at is null and (
        r.status = 'running' and r.schedule_version is not null and r.started_at is null
        or r.status <> 'skipped' and s.expression ~* '^\s*@at')
    group by s.id
    on conflict (schedule_id) do nothing;
    perform pg_notify(tg_table_schema, '');
    return null;
end $$;
comment on function pgsched.schedules_truncated() is 'All schedules were removed: their queued runs are cancelled.';
revoke execute on function pgsched.schedules_truncated() from public;

create trigger schedule_added after insert on pgsched.schedules
    for each row execute function pgsched.wake_workers();
-- A worker's write makes planned_at grow.
create trigger schedule_changed before update on pgsched.schedules
    for each row when (
        old.* is distinct from new.*
        and not coalesce(new.planned_at > old.planned_at, old.planned_at is null and new.planned_at is not null)
    ) execute function pgsched.schedule_changed();
create trigger schedule_followed after update on pgsched.schedules
    for each row when (new.version <> old.version) execute function pgsched.schedule_followed();
create trigger schedule_moved after update of app on pgsched.schedules
    for each row when (old.app is distinct from new.app) execute function pgsched.schedule_moved();
create trigger schedule_removed after delete on pgsched.schedules
    for each row execute function pgsched.schedule_removed();
-- Before: afterwards nobody knows the names.
create trigger schedules_truncated before truncate on pgsched.schedules
    for each statement execute function pgsched.schedules_truncated();

-- --- runs ------------------------------------------------------------------------------------------------

-- The look for limits costs 9 µs, a third of an insert. A transaction looks once for an entrypoint without limits: the
-- trigger notes the transaction and the entrypoint in a setting of the session, and the next rows do not call it.
-- Anybody may write that setting. The first claim that comes by sends a job to its line if it stands in none because of
-- that.
create function pgsched.run_queued() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    overlap_ text := 'allow';
begin
    if new.schedule_id is null
        and not exists (select from pgsched.limit_members m where m.entrypoint = new.entrypoint and m.limited) then
        perform set_config('pgsched_enqueue.unlimited', pg_current_xact_id()::text || new.entrypoint, false);
        -- The row may say otherwise.
        new.limited_by := null;
        new.line := null;
        new.gated := false;
        return new;
    end if;
    if new.schedule_id is not null then
        overlap_ := coalesce((select s.overlap from pgsched.schedules s where s.id = new.schedule_id), 'allow');
    end if;
    new.limited_by := pgsched.limiting_app(new.entrypoint, new.app);
    new.line := case when new.limited_by is not null
        then pgsched.line_for(new.entrypoint, new.args, new.schedule_id, overlap_, new.limited_by) end;
    new.gated := overlap_ <> 'allow' or new.line is not null;
    return new;
end $$;
comment on function pgsched.run_queued() is 'A client queues a run: finds the line that it has to join.';
revoke execute on function pgsched.run_queued() from public;

create function pgsched.run_queued_again() returns trigger
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
begin
    new.committed_at := null;
    new.reported_at := null;
    return new;
end $$;
comment on function pgsched.run_queued_again() is
    'A run is queued again whose transaction had committed: that success belongs to an earlier attempt, no longer to the run.';
revoke execute on function pgsched.run_queued_again() from public;

create function pgsched.run_waits() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    -- A running run with this key may go back to the queue only if this transaction does not commit. The worker sees
    -- the lock and asks again. The lock blocks only that one write: beats and claims are compatible with it.
    if tg_when = 'BEFORE' then
        perform 1 from pgsched.runs r
        where r.entrypoint = new.entrypoint and r.unique_key = new.unique_key and r.status = 'running'
            and r.unique_while = 'waiting' and coalesce(r.app, '') = coalesce(new.app, '')
        for key share;
        return new;
    end if;
    -- Once more after the insert, for a run that was claimed while this insert waited at the unique index. From here on
    -- a worker may wait for us, so we wait for nobody.
    perform 1 from pgsched.runs r
    where r.entrypoint = new.entrypoint and r.unique_key = new.unique_key and r.status = 'running'
        and r.unique_while = 'waiting' and coalesce(r.app, '') = coalesce(new.app, '')
    for key share skip locked;
    return null;
end $$;
comment on function pgsched.run_waits() is
    'A run is queued with a key that holds while it waits: running runs with the key go back to the queue only once this transaction is over.';
revoke execute on function pgsched.run_waits() from public;

create trigger run_queued before insert on pgsched.runs
    for each row when (
        new.status = 'queued' and (
            new.schedule_id is null and (new.gated or new.line is not null or new.limited_by is not null
                or current_setting('pgsched_enqueue.unlimited', true)
                    is distinct from pg_current_xact_id()::text || new.entrypoint)
            or new.schedule_id is not null and new.origin is not null
        )
    ) execute function pgsched.run_queued();
create trigger run_queued_again before update on pgsched.runs
    for each row when (new.status = 'queued' and old.status <> 'queued' and new.committed_at is not null)
    execute function pgsched.run_queued_again();
create trigger run_waits before insert on pgsched.runs
    for each row when (new.status = 'queued' and new.unique_key is not null and new.unique_while = 'waiting')
    execute function pgsched.run_waits();
create trigger run_waited after insert on pgsched.runs
    for each row when (new.status = 'queued' and new.unique_key is not null and new.unique_while = 'waiting')
    execute function pgsched.run_waits();
create trigger run_added after insert on pgsched.runs
    for each row when (new.status = 'queued') execute function pgsched.wake_workers();
create trigger run_changed after update on pgsched.runs
    for each row when (
        (new.status = 'queued' and (old.status <> 'queued' or new.due_at < old.due_at or new.entrypoint <> old.entrypoint))
        or (new.cancel_requested_at is not null and old.cancel_requested_at is null)
    ) execute function pgsched.wake_workers();

-- --- workers ---------------------------------------------------------------------------------------------

create function pgsched.worker_forgotten() returns trigger
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
begin
    -- A worker that stops deletes its own row over a session of its own, and wakes nobody.
    if tg_op = 'TRUNCATE' then
        perform pg_notify(tg_table_schema, '');
    elsif exists (
        select from gone g join pg_stat_activity a on a.application_name = 'pgsched ' || g.id
        where a.application_name <> current_setting('application_name')
    ) then
        perform pg_notify(tg_table_schema, '');
    end if;
    return null;
end $$;
comment on function pgsched.worker_forgotten() is
    'The row of a worker that has sessions was deleted: the wake-up has it look, and it writes its row again.';
revoke execute on function pgsched.worker_forgotten() from public;

create trigger worker_forgotten after delete on pgsched.workers
    referencing old table as gone for each statement execute function pgsched.worker_forgotten();
create trigger workers_forgotten after truncate on pgsched.workers
    for each statement execute function pgsched.worker_forgotten();
