-- Every fire time accounted for: pauses, changes and starts that the next plan has to settle; runs that wait for
-- their schedule's overlap; runs that somebody asked for; skips that say why.

-- --- schedules -------------------------------------------------------------------------------------------

alter table pgsched.schedules
    add column catch_up_limit int not null default 1000 check (catch_up_limit >= 1),
    add column accounted_through pgsched.instant,
    add column timed_at pgsched.instant,
    add column interruptions jsonb not null default '[]',
    add column backlog boolean not null default false;

comment on column pgsched.schedules.overlap is
    'What to do with a fire time that arrives while an earlier run is live: skip, queue (at most one waits), allow, cancel (the live one), or at most N at once.';
comment on column pgsched.schedules.catch_up_limit is
    'With catch_up all: at most so many missed fire times run, the newest ones; older ones are recorded as missed.';
comment on column pgsched.schedules.accounted_through is
    'Every fire time up to here is a run or a recorded skip. Null: none is yet; they count from timed_at on.';
comment on column pgsched.schedules.timed_at is 'Since when the expression, zone and bounds are what they are.';
comment on column pgsched.schedules.interruptions is
    'Pauses that ended, timings that were replaced, times of retirement, oldest first: written by the trigger where fire times may lie in them, settled and emptied by the next plan.';
comment on column pgsched.schedules.backlog is
    'Of a paused schedule: once resumed, what fell into the pause is treated as missed, by catch_up, instead of skipped.';

-- As a worker's write, so that nothing of it counts as a client's change.
update pgsched.schedules
set timed_at = updated_at, planned_at = clock_timestamp(),
    accounted_through = case when planned_at is not null
        then coalesce(next_run - interval '1 microsecond', greatest(planned_at, updated_at)) end;
alter table pgsched.schedules alter column timed_at set default clock_timestamp(), alter column timed_at set not null;

-- --- runs ------------------------------------------------------------------------------------------------

alter table pgsched.runs
    add column origin text check (origin in ('trigger', 'backfill')),
    add column again int not null default 0 check (again >= 0),
    add column gated boolean not null default false,
    add column detail text;

comment on column pgsched.runs.reason is
    'Why it was skipped (overlap, missed, paused, bounds, retired) or cancelled.';
comment on column pgsched.runs.detail is 'Of a skip: how it came to that, for people.';
comment on column pgsched.runs.origin is
    'Null: its fire time came, or it was enqueued. trigger, backfill: somebody asked for it.';
comment on column pgsched.runs.again is
    'Nought for the run of a fire time; counts on where a backfill runs one again that had a run.';
comment on column pgsched.runs.gated is
    'Claimed only under its schedule''s lock, while fewer runs of it are running than its overlap allows.';

update pgsched.runs r set gated = true
from pgsched.schedules s
where s.id = r.schedule_id and s.overlap <> 'allow' and r.status in ('queued', 'running');

-- A skip is no run: what was skipped can be run later, by a backfill, and both are told.
alter table pgsched.runs drop constraint runs_one_per_fire_time;
create unique index runs_one_per_fire_time on pgsched.runs (schedule_id, fire_time, again) where status <> 'skipped';
comment on index pgsched.runs_one_per_fire_time is 'No fire time has two runs, whatever workers, clocks and retries do.';
create index runs_skipped on pgsched.runs (schedule_id, fire_time) where status = 'skipped';

drop index pgsched.runs_queued;
create index runs_queued on pgsched.runs (priority desc, due_at, id) where status = 'queued' and not gated;
drop index pgsched.runs_queued_by_schedule;
create index runs_gated on pgsched.runs (schedule_id, (attempt > 0) desc, priority desc, due_at, id)
    where status = 'queued' and gated;
create index runs_gated_due on pgsched.runs (due_at) where status = 'queued' and gated;

-- --- what a client's change means ------------------------------------------------------------------------

create or replace function pgsched.schedule_changed() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    now_ timestamptz := clock_timestamp();
    retimed boolean := (new.expression, new.timezone, new.starts_at, new.ends_at, new.max_runs)
        is distinct from (old.expression, old.timezone, old.starts_at, old.ends_at, old.max_runs);
    -- Whether fire times may have passed that are neither a run nor a recorded skip yet.
    behind boolean := old.status in ('active', 'paused') and coalesce(old.next_run, '-infinity'::timestamptz) <= now_;
    resumed boolean := old.status = 'paused' and new.status <> 'paused';
    -- A pause ends when it was said to end, although nobody was there to notice.
    resumed_at timestamptz := least(now_, old.paused_until);
begin
    new.updated_at := now_;

    -- What has passed is judged by what held then: a pause first, then the timing that is replaced.
    if old.status = 'paused' and behind and not new.backlog and (resumed or retimed) then
        new.interruptions := new.interruptions || jsonb_build_object(
            'kind', 'paused', 'since', old.paused_at, 'through', case when resumed then resumed_at else now_ end,
            'note', old.note);
    end if;
    if old.retired_at is not null and new.retired_at is null and not retimed then
        new.interruptions := new.interruptions || jsonb_build_object(
            'kind', 'retired', 'since', old.retired_at, 'through', now_);
    end if;
    if retimed then
        if behind then
            new.interruptions := new.interruptions || jsonb_build_object(
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
    'A client changed a schedule: has next_run planned anew where its timing changed, notes what the next plan has to settle, wakes the workers.';

create or replace function pgsched.drop_unstarted() returns trigger
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
    -- of this first. What somebody asked for (a trigger, a backfill) is no fire time of the schedule's own.
    with gone as (
        delete from pgsched.runs
        where schedule_id = old.id and status in ('running', 'queued') and attempt <= 1 and started_at is null
            and origin is null
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
        -- Nobody can lock the schedule any more: its last runs' retries go the common way.
        update pgsched.runs set gated = false where schedule_id = old.id and status = 'running' and gated;
    elsif dropped > 0 then
        update pgsched.schedules s
        set next_run = case
                when s.status = 'finished' and (s.retired_at is not null or old.status <> 'finished') then null
                when s.next_run is null and s.status = 'active' then null  -- is planned anew
                when retimed or (new.next_run is not null and new.next_run is distinct from old.next_run)
                    then s.next_run
                else least(first, s.next_run)
            end,
            -- A new timing counts from its change on; under the old one this fire time is open again.
            accounted_through = case when retimed then s.accounted_through
                else least(s.accounted_through, first - interval '1 microsecond') end,
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

-- --- the interface ---------------------------------------------------------------------------------------

create or replace function pgsched.create_schedule(
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
    where key not in ('overlap', 'catch_up', 'catch_up_limit', 'grace', 'jitter', 'timeout', 'max_attempts', 'backoff',
                      'max_backoff', 'starts_at', 'ends_at', 'max_runs', 'priority', 'note');
    if unknown is not null then
        raise exception 'unknown option of a schedule: %', unknown using errcode = '22023';
    end if;
    insert into pgsched.schedules (
        name, entrypoint, expression, args, timezone, overlap, catch_up, catch_up_limit, grace, jitter, timeout,
        max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs, priority, note
    ) values (
        create_schedule.name, create_schedule.entrypoint, create_schedule.expression,
        coalesce(create_schedule.args, '{}'), coalesce(create_schedule.timezone, 'UTC'),
        coalesce(options ->> 'overlap', 'skip'), coalesce(options ->> 'catch_up', 'latest'),
        coalesce((options ->> 'catch_up_limit')::int, 1000),
        (options ->> 'grace')::interval, coalesce((options ->> 'jitter')::interval, '0'),
        (options ->> 'timeout')::interval, (options ->> 'max_attempts')::int,
        (options ->> 'backoff')::interval, (options ->> 'max_backoff')::interval,
        (options ->> 'starts_at')::timestamptz, (options ->> 'ends_at')::timestamptz,
        (options ->> 'max_runs')::int, coalesce((options ->> 'priority')::smallint, 0), options ->> 'note'
    ) returning id into made;
    return made;
end $$;

drop function pgsched.pause(text, text, timestamptz);
create function pgsched.pause(
    name text, note text default null, until timestamptz default null, backlog boolean default false
) returns void
    language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    update pgsched.schedules s
    set status = 'paused', note = pause.note, paused_until = pause.until, backlog = coalesce(pause.backlog, false)
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
comment on function pgsched.pause(text, text, timestamptz, boolean) is
    'Pauses a schedule, until an instant or until it is resumed. With backlog, what falls into the pause is treated by catch_up afterwards instead of being skipped.';

drop function pgsched.resume(text);
create function pgsched.resume(name text, backlog boolean default null) returns void
    language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    update pgsched.schedules s
    set status = 'active', backlog = coalesce(resume.backlog, s.backlog)
    where s.name = resume.name and s.status in ('active', 'paused', 'invalid');
    if not found then
        if exists (select from pgsched.schedules s where s.name = resume.name) then
            raise exception 'schedule "%" is not paused', name using errcode = 'PS409';
        end if;
        raise exception 'there is no schedule "%"', name using errcode = 'PS404';
    end if;
end $$;
comment on function pgsched.resume(text, boolean) is
    'Lets a paused schedule go on; what it missed meanwhile is recorded, and run only with backlog, by catch_up (null: as pause() said). An invalid one is planned again.';

create or replace function pgsched.trigger(name text) returns bigint
    language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    made bigint;
    now_ timestamptz := clock_timestamp();
begin
    insert into pgsched.runs (schedule_id, entrypoint, args, fire_time, previous_fire_time, due_at, priority,
                              max_attempts, backoff, max_backoff, timeout, origin, gated)
    select s.id, s.entrypoint, s.args, now_, s.last_run, now_, s.priority,
           s.max_attempts, s.backoff, s.max_backoff, s.timeout, 'trigger', s.overlap <> 'allow'
    from pgsched.schedules s where s.name = trigger.name
    returning id into made;
    if made is null then
        raise exception 'there is no schedule "%"', name using errcode = 'PS404';
    end if;
    return made;
end $$;
comment on function pgsched.trigger(text) is
    'Runs a schedule now, whatever its status, or as soon as its overlap lets it; its fire times stay as they are. Returns the run''s id.';

create or replace function pgsched.retry(run_id bigint) returns void
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
    update pgsched.runs r
    set status = 'queued', due_at = clock_timestamp(),
        max_attempts = case when max_attempts is not null then greatest(max_attempts, attempt + 1) end,
        finished_at = null, reason = null, cancel_requested_at = null, worker = null,
        gated = exists (select from pgsched.schedules s where s.id = r.schedule_id and s.overlap <> 'allow')
    where id = run_id;
end $$;
