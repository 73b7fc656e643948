-- Whoever refers to a run (a foreign key, a trigger that forbids deleting) no longer forbids changing its schedule. A fire
-- time at the very instant at which a pause was to end runs. A single instant that has run does not run again if its
-- schedule is removed and made again. No end of a run waits for a client that has queued another one with its key.

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
        -- A constraint that is checked at the commit would refuse the whole transaction, where nobody can catch it.
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
            'kind', 'paused', 'since', old.paused_at, 'note', old.note,
            -- A fire time at the very instant at which the pause was to end is no part of it.
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
        -- A single instant that stays the same one is decided once, whatever else changes around it.
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

create or replace function pgsched.schedule_followed() returns trigger
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
    select count(*), min(w.fire_time), (array_agg(w.previous_fire_time order by w.fire_time))[1]
    into dropped, first, before_first
    from pgsched.withdraw_queued(array(
        select q.id from pgsched.runs q
        where q.schedule_id = new.id and q.status = 'queued' and q.origin is null and q.attempt = 0
            and q.started_at is null and q.stops is null and q.errors = '[]' and q.due_at > clock_timestamp()
            -- One that has come, and that jitter alone puts off, is not judged anew by its lateness.
            and (q.fire_time > clock_timestamp() or not (new.status = 'active'
                or new.status = 'finished' and new.retired_at is null and not new.closed))
            and (not retimed or q.fire_time > new.timed_at))) w;
    if dropped > 0 then
        update pgsched.schedules s
        set next_run = case
                when s.status = 'finished' and (s.retired_at is not null or s.closed) then null
                when s.next_run is null and s.status = 'active' then null  -- is planned anew
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
            -- By way of an array, of which a planner expects a few elements. Of many queued runs it may expect so many to
            -- be this schedule's that it would read the whole table to join them with themselves.
            where q.id = any (array(
                select q.id from pgsched.runs q where q.schedule_id = new.id and q.status = 'queued'))
        ) l
        where r.id = l.id and r.status = 'queued';
    end if;
    return null;
end $$;

create or replace function pgsched.schedule_removed() returns trigger
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

create or replace function pgsched.schedules_truncated() returns trigger
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

create or replace function pgsched.waiting_instead(run_id bigint, batch bigint[]) returns bigint
    language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp
    set lock_timeout = '20ms' as $$
declare
    mine record;
    other bigint;
begin
    -- Another one that is not committed yet has a key share lock on this run (run_waits): nothing else is in its way.
    select r.entrypoint, r.unique_key, coalesce(r.app, '') as app into mine
    from pgsched.runs r where r.id = run_id for update skip locked;
    if not found then
        return null;
    end if;
    -- A look of its own, after the lock: it sees what was committed since the caller's began.
    select min(q.id) into other from pgsched.runs q
    where q.status = 'queued' and q.unique_while = 'waiting' and q.unique_key = mine.unique_key
        and q.entrypoint = mine.entrypoint and coalesce(q.app, '') = mine.app;
    if other is null then
        select min(q.id) into other from pgsched.runs q
        where q.id = any (batch) and q.id < run_id and q.status = 'running' and q.unique_while = 'waiting'
            and q.unique_key = mine.unique_key and q.entrypoint = mine.entrypoint and coalesce(q.app, '') = mine.app;
    end if;
    if other is not null then
        return other;
    end if;
    -- Last it is tried, and taken back: a transaction that is not over may have queued another one in a way that leaves
    -- no such lock (a retry, a changed key, an old snapshot). The write that follows must never wait for a client.
    begin
        update pgsched.runs r set status = 'queued' where r.id = run_id;
        raise exception using errcode = 'PS000';
    exception
        when sqlstate 'PS000' then
            return 0;
        when lock_not_available then
            return null;
        when unique_violation then
            select min(q.id) into other from pgsched.runs q
            where q.status = 'queued' and q.unique_while = 'waiting' and q.unique_key = mine.unique_key
                and q.entrypoint = mine.entrypoint and coalesce(q.app, '') = mine.app;
            return other;
    end;
end $$;

comment on column pgsched.runs.withdrawn_at is
    'When its fire time was given back, because its schedule had changed: by a reaper, since its holder was dead (whether its function was called is not known), or because the database refused to delete the row (it was not called).';
