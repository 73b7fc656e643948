-- The first schema: schedules, their runs, the workers that run them.
-- Written for the schema name pgsched; `pgsched migrate` puts the configured name in its place.

create domain pgsched.instant as timestamptz
    check (value >= '1900-01-01 00:00:00+00' and value < '2200-01-01 00:00:00+00');
comment on domain pgsched.instant is
    'A point in time that every client language can hold: no infinity, no year 294276.';

create domain pgsched.duration as interval
    check (value >= interval '0' and value <= interval '36500 days');
comment on domain pgsched.duration is 'A length of time, not negative, at most a hundred years.';

create table pgsched.schedules (
    id           bigint generated always as identity primary key,
    name         text not null unique check (name ~ '^[^[:cntrl:]]{1,200}$'),
    entrypoint   text not null check (entrypoint ~ '^[^[:cntrl:]]{1,200}$'),
    expression   text not null check (length(expression) <= 1000),
    timezone     text not null default 'UTC' check (length(timezone) <= 200),
    args         jsonb not null default '{}' check (jsonb_typeof(args) = 'object'),
    overlap      text not null default 'skip'
                 check (overlap in ('skip', 'queue', 'allow', 'cancel') or overlap ~ '^[1-9][0-9]{0,5}$'),
    catch_up     text not null default 'latest' check (catch_up in ('latest', 'all', 'none')),
    grace        pgsched.duration,
    jitter       pgsched.duration not null default '0',
    timeout      pgsched.duration check (timeout > interval '0'),
    max_attempts int check (max_attempts between 1 and 1000),
    backoff      pgsched.duration,
    max_backoff  pgsched.duration,
    starts_at    pgsched.instant,
    ends_at      pgsched.instant,
    max_runs     int check (max_runs >= 1),
    run_count    bigint not null default 0,
    priority     smallint not null default 0 check (priority between -100 and 100),
    status       text not null default 'active'
                 check (status in ('active', 'paused', 'finished', 'invalid')),
    note         text,
    paused_at    pgsched.instant,
    resumed_at   pgsched.instant,
    paused_until pgsched.instant,
    retired_at   pgsched.instant,
    owner        text not null default 'api',
    next_run     pgsched.instant,
    planned_at   timestamptz,
    last_run     pgsched.instant,
    last_status  text,
    created_at   pgsched.instant not null default clock_timestamp(),
    updated_at   pgsched.instant not null default clock_timestamp()
) with (fillfactor = 80);

-- A row without next_run waits to be planned, so it sorts before all others.
create index schedules_due on pgsched.schedules ((coalesce(next_run, '-infinity'::timestamptz)))
    where status = 'active';
create index schedules_paused_until on pgsched.schedules (paused_until)
    where status = 'paused' and paused_until is not null;

comment on table pgsched.schedules is 'What shall run when. Any client may write here; workers plan next_run.';
comment on column pgsched.schedules.entrypoint is 'The name under which a factory registered the function.';
comment on column pgsched.schedules.expression is
    'A cron expression, @every 30s, @at 2027-01-01T00:00:00Z, or a macro such as @daily.';
comment on column pgsched.schedules.timezone is 'The IANA zone on whose wall clock the expression is read.';
comment on column pgsched.schedules.overlap is
    'What to do with a fire time that arrives while an earlier run is live: skip, queue, allow, cancel, or at most N at once.';
comment on column pgsched.schedules.catch_up is 'Which of several missed fire times run: latest, all, none.';
comment on column pgsched.schedules.grace is 'A fire time older than this is missed, whatever catch_up says.';
comment on column pgsched.schedules.jitter is 'The most by which a start is put off after its fire time.';
comment on column pgsched.schedules.max_attempts is 'Null: as the entrypoint says.';
comment on column pgsched.schedules.backoff is 'The wait before the second attempt; it doubles from there. Null: as the entrypoint says.';
comment on column pgsched.schedules.run_count is 'Runs made so far, for max_runs.';
comment on column pgsched.schedules.status is
    'active; paused by somebody; finished: nothing more will fire; invalid: could not be planned, note says why.';
comment on column pgsched.schedules.note is 'Why it is paused, finished or invalid.';
comment on column pgsched.schedules.paused_until is 'When a paused schedule resumes by itself.';
comment on column pgsched.schedules.retired_at is 'When the application that declared it stopped declaring it.';
comment on column pgsched.schedules.owner is 'api, or code: and the name of the application that declares it.';
comment on column pgsched.schedules.next_run is
    'The next fire time. Null on an active schedule: a worker will plan it. It only grows, unless a client changes it.';
comment on column pgsched.schedules.planned_at is
    'When a worker last wrote next_run. An update that leaves this alone is a client''s, and wakes the workers.';
comment on column pgsched.schedules.last_run is 'The newest fire time that became a run.';
comment on column pgsched.schedules.last_status is
    'How the newest ended run ended; written in passing, the truth is in runs.';

create table pgsched.runs (
    id                  bigint generated always as identity primary key,
    schedule_id         bigint,
    entrypoint          text not null check (entrypoint ~ '^[^[:cntrl:]]{1,200}$'),
    args                jsonb not null default '{}' check (jsonb_typeof(args) = 'object'),
    fire_time           pgsched.instant,
    previous_fire_time  pgsched.instant,
    due_at              pgsched.instant not null default clock_timestamp(),
    priority            smallint not null default 0 check (priority between -100 and 100),
    status              text not null default 'queued'
                        check (status in ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'skipped')),
    reason              text,
    skipped_count       bigint check (skipped_count >= 1),
    skipped_through     pgsched.instant,
    attempt             int not null default 0,
    max_attempts        int check (max_attempts >= 1),
    backoff             pgsched.duration,
    max_backoff         pgsched.duration,
    timeout             pgsched.duration check (timeout > interval '0'),
    worker              uuid,
    claimed_at          pgsched.instant,
    started_at          pgsched.instant,
    heartbeat_at        pgsched.instant,
    cancel_requested_at pgsched.instant,
    finished_at         pgsched.instant,
    result              jsonb,
    errors              jsonb not null default '[]',
    unique_key          text check (length(unique_key) <= 500),
    created_at          timestamptz not null default clock_timestamp(),
    constraint runs_one_per_fire_time unique (schedule_id, fire_time)
) with (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05
);

-- The live states have indexes of their own, so that history costs the claim nothing.
-- heartbeat_at is in none of them: a beat rewrites the row in its page and touches no index.
create index runs_queued on pgsched.runs (priority desc, due_at, id) where status = 'queued';
create index runs_queued_by_schedule on pgsched.runs (schedule_id)
    where status = 'queued' and schedule_id is not null;
create index runs_running on pgsched.runs (schedule_id, id) where status = 'running';
create index runs_finished on pgsched.runs (finished_at)
    where status in ('succeeded', 'failed', 'cancelled', 'skipped');
create unique index runs_unique_key on pgsched.runs (entrypoint, unique_key)
    where unique_key is not null and status in ('queued', 'running');

comment on table pgsched.runs is
    'One row a fire time or an enqueued job: first the work to do, then its history. A claim is (id, attempt, worker).';
comment on column pgsched.runs.schedule_id is
    'Null for an enqueued job. Not a foreign key: history outlives its schedule.';
comment on column pgsched.runs.fire_time is 'The nominal instant that the expression names; never rewritten.';
comment on column pgsched.runs.previous_fire_time is
    'The fire time of the schedule''s run before this one: together they are the window this run stands for.';
comment on column pgsched.runs.due_at is 'When it may start: the fire time, or later for a retry.';
comment on column pgsched.runs.reason is 'Why it was skipped or cancelled.';
comment on column pgsched.runs.skipped_count is 'How many fire times this skip stands for, from fire_time through skipped_through.';
comment on column pgsched.runs.attempt is 'The try that is under way, or the last one; each claim adds one, a give-back takes it off.';
comment on column pgsched.runs.worker is 'Who claimed it last. Null once a reaper has taken the claim away.';
comment on column pgsched.runs.started_at is 'When the function of this attempt was called; written with the first beat or at the end.';
comment on column pgsched.runs.heartbeat_at is 'The claim''s last sign of life.';
comment on column pgsched.runs.errors is 'One entry an attempt that failed: attempt, at, type, message, traceback.';
comment on column pgsched.runs.unique_key is 'At most one live run of an entrypoint has it.';

create table pgsched.workers (
    id                 uuid primary key,
    app                text not null,
    host               text not null,
    pid                int not null,
    version            text not null,
    entrypoints        text[] not null,
    state              text not null default 'running' check (state in ('running', 'draining')),
    running            int not null default 0,
    direct             boolean not null,
    heartbeat_interval pgsched.duration not null,
    stall_timeout      pgsched.duration not null,
    started_at         timestamptz not null default clock_timestamp(),
    seen_at            timestamptz not null default clock_timestamp()
);
comment on table pgsched.workers is 'One row a live daemon process.';
comment on column pgsched.workers.direct is
    'Whether its sessions are the server''s own, so that a missing one proves its death. False behind a pooler.';

-- Wake-ups. The channel is the schema's name; a notification carries no data and is only a hint to look.

create function pgsched.wake_workers() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform pg_notify(tg_table_schema, '');
    return null;
end $$;
comment on function pgsched.wake_workers() is 'Tells the workers to look, once the transaction commits.';

create function pgsched.schedule_changed() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    retimed boolean := (new.expression, new.timezone, new.starts_at, new.ends_at, new.max_runs)
        is distinct from (old.expression, old.timezone, old.starts_at, old.ends_at, old.max_runs);
begin
    new.updated_at := clock_timestamp();

    if retimed and new.next_run is not distinct from old.next_run then
        new.next_run := null;
        if old.status in ('invalid', 'finished') and new.status = old.status and new.retired_at is null then
            new.status := 'active';
            new.note := null;
        end if;
    end if;

    if new.status = 'paused' and old.status <> 'paused' then
        new.paused_at := clock_timestamp();
        new.resumed_at := null;
    elsif new.status = 'active' and old.status <> 'active' then
        if old.status = 'paused' then
            new.resumed_at := clock_timestamp();
        end if;
        new.paused_until := null;
        if new.note is not distinct from old.note then
            new.note := null;
        end if;
    end if;

    perform pg_notify(tg_table_schema, '');
    return new;
end $$;
comment on function pgsched.schedule_changed() is
    'A client changed a schedule: has next_run planned anew where its timing changed, wakes the workers.';

create function pgsched.drop_unstarted() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    retimed boolean := tg_op = 'UPDATE' and (new.expression, new.timezone, new.starts_at, new.ends_at, new.max_runs)
        is distinct from (old.expression, old.timezone, old.starts_at, old.ends_at, old.max_runs);
    dropped bigint;
    first timestamptz;
    before_first timestamptz;
begin
    -- A run that was claimed ahead of its instant has not started, and is as if never claimed. Its worker held the
    -- schedule's lock while it claimed, so its commit is seen here. This runs at the very end of the client's
    -- transaction: judged earlier, the instant could pass and the run be done before its row is gone, and the
    -- fire time would run twice. For the same reason a run about to start is left alone: its worker has to hear
    -- of this first.
    with gone as (
        delete from pgsched.runs
        where schedule_id = old.id and status in ('running', 'queued') and attempt <= 1 and started_at is null
            and due_at > clock_timestamp() + interval '100 milliseconds'
            and (not retimed or fire_time > clock_timestamp())
        returning fire_time, previous_fire_time
    )
    select count(*), min(fire_time), (array_agg(previous_fire_time order by fire_time))[1]
    into dropped, first, before_first from gone;

    if tg_op = 'DELETE' then
        update pgsched.runs
        set status = 'cancelled', reason = 'schedule removed', finished_at = clock_timestamp()
        where schedule_id = old.id and status = 'queued';
    elsif dropped > 0 then
        update pgsched.schedules s
        set next_run = case
                when s.status = 'finished' and (s.retired_at is not null or old.status <> 'finished') then null
                when s.next_run is null and s.status = 'active' then null  -- is planned anew
                when retimed or (new.next_run is not null and new.next_run is distinct from old.next_run)
                    then s.next_run
                else least(first, s.next_run)
            end,
            -- Claiming its last fire time had finished it.
            status = case when s.status = 'finished' and s.retired_at is null and old.status = 'finished'
                     then 'active' else s.status end,
            note = case when s.status = 'finished' and s.retired_at is null and old.status = 'finished'
                   then null else s.note end,
            run_count = greatest(0, s.run_count - dropped),
            last_run = before_first,
            planned_at = clock_timestamp()
        where s.id = old.id;
    end if;
    return null;
end $$;
comment on function pgsched.drop_unstarted() is
    'A client changed or removed a schedule: takes back what was claimed ahead of its time. A removed one''s queued runs go too; what runs ends by itself, history stays.';

create trigger schedule_added after insert on pgsched.schedules
    for each row execute function pgsched.wake_workers();
create trigger schedule_changed before update on pgsched.schedules
    for each row when (
        old.* is distinct from new.*
        and old.planned_at is not distinct from new.planned_at
        and old.last_status is not distinct from new.last_status
    ) execute function pgsched.schedule_changed();
create constraint trigger schedule_changed_at_commit after update on pgsched.schedules
    deferrable initially deferred
    for each row when (
        old.* is distinct from new.*
        and old.planned_at is not distinct from new.planned_at
        and old.last_status is not distinct from new.last_status
    ) execute function pgsched.drop_unstarted();
create trigger schedule_removed after delete on pgsched.schedules
    for each row execute function pgsched.wake_workers();
create constraint trigger schedule_removed_at_commit after delete on pgsched.schedules
    deferrable initially deferred
    for each row execute function pgsched.drop_unstarted();

create trigger run_added after insert on pgsched.runs
    for each row when (new.status = 'queued') execute function pgsched.wake_workers();
create trigger run_changed after update on pgsched.runs
    for each row when (
        (new.status = 'queued' and (old.status <> 'queued' or new.due_at < old.due_at))
        or (new.cancel_requested_at is not null and old.cancel_requested_at is null)
    ) execute function pgsched.wake_workers();

-- The interface for every language. Errors: SQLSTATE PS404 nothing of that name or id, PS409 not in that state.

create function pgsched.create_schedule(
    name text, entrypoint text, expression text,
    args jsonb default '{}', timezone text default 'UTC', options jsonb default '{}'
) returns bigint
    language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    made bigint;
    unknown text;
begin
    select string_agg(key, ', ') into unknown from jsonb_object_keys(options) as key
    where key not in ('overlap', 'catch_up', 'grace', 'jitter', 'timeout', 'max_attempts', 'backoff',
                      'max_backoff', 'starts_at', 'ends_at', 'max_runs', 'priority', 'note');
    if unknown is not null then
        raise exception 'unknown option of a schedule: %', unknown using errcode = '22023';
    end if;
    insert into pgsched.schedules (
        name, entrypoint, expression, args, timezone, overlap, catch_up, grace, jitter, timeout,
        max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs, priority, note
    ) values (
        create_schedule.name, create_schedule.entrypoint, create_schedule.expression,
        coalesce(create_schedule.args, '{}'), coalesce(create_schedule.timezone, 'UTC'),
        coalesce(options ->> 'overlap', 'skip'), coalesce(options ->> 'catch_up', 'latest'),
        (options ->> 'grace')::interval, coalesce((options ->> 'jitter')::interval, '0'),
        (options ->> 'timeout')::interval, (options ->> 'max_attempts')::int,
        (options ->> 'backoff')::interval, (options ->> 'max_backoff')::interval,
        (options ->> 'starts_at')::timestamptz, (options ->> 'ends_at')::timestamptz,
        (options ->> 'max_runs')::int, coalesce((options ->> 'priority')::smallint, 0), options ->> 'note'
    ) returning id into made;
    return made;
end $$;
comment on function pgsched.create_schedule(text, text, text, jsonb, text, jsonb) is
    'Makes a schedule; a worker plans it as soon as this commits. Returns its id.';

create function pgsched.pause(name text, note text default null, until timestamptz default null) returns void
    language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    update pgsched.schedules s set status = 'paused', note = pause.note, paused_until = pause.until
    where s.name = pause.name and (s.status in ('active', 'paused') or s.status = 'finished' and exists (
        -- Its last fire time is claimed, and still to come.
        select from pgsched.runs r
        where r.schedule_id = s.id and r.status in ('running', 'queued') and r.attempt <= 1
            and r.started_at is null and r.due_at > clock_timestamp()
    ));
    if not found then
        if exists (select from pgsched.schedules s where s.name = pause.name) then
            raise exception 'schedule "%" is neither active nor paused', name using errcode = 'PS409';
        end if;
        raise exception 'there is no schedule "%"', name using errcode = 'PS404';
    end if;
end $$;
comment on function pgsched.pause(text, text, timestamptz) is
    'Pauses a schedule, until an instant or until it is resumed.';

create function pgsched.resume(name text) returns void
    language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    update pgsched.schedules s set status = 'active'
    where s.name = resume.name and s.status in ('active', 'paused', 'invalid');
    if not found then
        if exists (select from pgsched.schedules s where s.name = resume.name) then
            raise exception 'schedule "%" is not paused', name using errcode = 'PS409';
        end if;
        raise exception 'there is no schedule "%"', name using errcode = 'PS404';
    end if;
end $$;
comment on function pgsched.resume(text) is
    'Lets a paused schedule go on; what it missed meanwhile is recorded, not run. An invalid one is planned again.';

create function pgsched.trigger(name text) returns bigint
    language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    made bigint;
    now_ timestamptz := clock_timestamp();
begin
    insert into pgsched.runs (schedule_id, entrypoint, args, fire_time, previous_fire_time, due_at, priority,
                              max_attempts, backoff, max_backoff, timeout)
    select s.id, s.entrypoint, s.args, now_, s.last_run, now_, s.priority,
           s.max_attempts, s.backoff, s.max_backoff, s.timeout
    from pgsched.schedules s where s.name = trigger.name
    returning id into made;
    if made is null then
        raise exception 'there is no schedule "%"', name using errcode = 'PS404';
    end if;
    return made;
end $$;
comment on function pgsched.trigger(text) is
    'Runs a schedule now, whatever its status; its fire times stay as they are. Returns the run''s id.';

create function pgsched.remove(name text) returns void
    language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    delete from pgsched.schedules s where s.name = remove.name;
    if not found then
        raise exception 'there is no schedule "%"', name using errcode = 'PS404';
    end if;
end $$;
comment on function pgsched.remove(text) is 'Removes a schedule; its history stays.';

create function pgsched.enqueue(
    entrypoint text, args jsonb default '{}', due_at timestamptz default null,
    priority int default 0, unique_key text default null
) returns bigint
    language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    made bigint;
begin
    loop
        insert into pgsched.runs (entrypoint, args, due_at, priority, unique_key)
        values (enqueue.entrypoint, coalesce(enqueue.args, '{}'), coalesce(enqueue.due_at, clock_timestamp()),
                coalesce(enqueue.priority, 0), enqueue.unique_key)
        on conflict (entrypoint, unique_key) where unique_key is not null and status in ('queued', 'running')
        do nothing
        returning id into made;
        exit when made is not null;
        select r.id into made from pgsched.runs r
        where r.entrypoint = enqueue.entrypoint and r.unique_key = enqueue.unique_key
            and r.status in ('queued', 'running');
        -- It may have ended between the two statements: then there is room for a new one.
        exit when made is not null;
    end loop;
    return made;
end $$;
comment on function pgsched.enqueue(text, jsonb, timestamptz, int, text) is
    'Queues one run of an entrypoint. With a unique_key that a live run has, returns that run''s id.';

create function pgsched.cancel(run_id bigint) returns text
    language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    state text;
begin
    -- The row is locked first: between a look and a write it could be claimed, or end.
    select status into state from pgsched.runs where id = run_id for update;
    if state is null then
        raise exception 'there is no run %', run_id using errcode = 'PS404';
    elsif state = 'queued' then
        update pgsched.runs set status = 'cancelled', reason = 'cancelled on request', finished_at = clock_timestamp()
        where id = run_id;
        return 'cancelled';
    elsif state = 'running' then
        update pgsched.runs set cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp())
        where id = run_id;
        return 'requested';
    end if;
    raise exception 'run % has already ended: %', run_id, state using errcode = 'PS409';
end $$;
comment on function pgsched.cancel(bigint) is
    'Cancels a queued run (returns cancelled), or asks the worker of a running one to (returns requested).';

create function pgsched.retry(run_id bigint) returns void
    language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    state text;
begin
    select status into state from pgsched.runs where id = run_id for update;
    if state is null then
        raise exception 'there is no run %', run_id using errcode = 'PS404';
    elsif state not in ('failed', 'cancelled') then
        raise exception 'run % is %; only a failed or cancelled one can be retried', run_id, state
            using errcode = 'PS409';
    end if;
    update pgsched.runs
    set status = 'queued', due_at = clock_timestamp(), max_attempts = case when max_attempts is not null then greatest(max_attempts, attempt + 1) end,
        finished_at = null, reason = null, cancel_requested_at = null, worker = null
    where id = run_id;
end $$;
comment on function pgsched.retry(bigint) is
    'Queues a failed or cancelled run again, with at least one more attempt; its errors stay.';
