-- Whose a schedule and a run are: an application has a name, and its workers take only its own work and work that names
-- no application.

alter table pgsched.schedules add column app text
    constraint schedules_app_check check (app !~ '[[:cntrl:]]' and length(app) between 1 and 200);
comment on column pgsched.schedules.app is
    'The application whose workers run it. Null: any worker that has the entrypoint.';

alter table pgsched.runs add column app text
    constraint runs_app_check check (app !~ '[[:cntrl:]]' and length(app) between 1 and 200);
comment on column pgsched.runs.app is
    'The application whose workers may claim it. Null: any worker that has the entrypoint. A schedule''s runs follow the schedule.';

-- As a worker's write, so that none of it counts as a client's change. Live runs follow before there is a trigger.
update pgsched.schedules set app = substr(owner, 6), planned_at = clock_timestamp()
where starts_with(owner, 'code:') and substr(owner, 6) !~ '[[:cntrl:]]' and length(owner) between 6 and 205;
update pgsched.runs r set app = s.app
from pgsched.schedules s
where s.id = r.schedule_id and s.app is not null and r.status in ('queued', 'running');

create function pgsched.schedule_moved() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    -- One snapshot: a run that goes from running to queued meanwhile is in one of the two lists, and its row is judged
    -- again once its writer has committed. Arrays, so that every session finds the rows by their ids.
    update pgsched.runs r set app = new.app
    where r.id = any(
            array(select q.id from pgsched.runs q where q.schedule_id = new.id and q.status = 'queued')
            || array(select q.id from pgsched.runs q where q.schedule_id = new.id and q.status = 'running'))
        and r.status in ('queued', 'running') and r.app is distinct from new.app;
    return null;
end $$;
comment on function pgsched.schedule_moved() is
    'A schedule has another application now: its queued and running runs follow, so that a retry goes to the new one.';
create trigger schedule_moved after update of app on pgsched.schedules
    for each row when (old.app is distinct from new.app) execute function pgsched.schedule_moved();

-- --- the interface ---------------------------------------------------------------------------------------

create or replace function pgsched.checked_options(given jsonb) returns jsonb
    language plpgsql stable security invoker set search_path = pg_catalog, pg_temp as $$
declare
    defaults constant jsonb := '{"timezone": "UTC", "args": {}, "overlap": "skip", "catch_up": "latest",
        "catch_up_limit": 1000, "jitter": "0", "priority": 0}';
    optional constant text[] := array['grace', 'timeout', 'max_attempts', 'backoff', 'max_backoff', 'starts_at',
                                      'ends_at', 'max_runs', 'app', 'note'];
    iso constant text := '^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]+)?)?'
        '([Zz]|[+-][0-9]{2}(:?[0-9]{2})?)$';
    unknown text;
    option text;
    value jsonb;
    written text;
    fine boolean;
begin
    if jsonb_typeof(given) is distinct from 'object' then
        raise exception 'The options of a schedule are a JSON object.' using errcode = 'PS422';
    end if;
    select string_agg(k.key, ', ') into unknown from jsonb_object_keys(given) as k (key)
    where k.key not in ('entrypoint', 'expression') and not defaults ? k.key and k.key <> all (optional);
    if unknown is not null then
        raise exception 'A schedule has no option %: there are entrypoint, expression, timezone, args, overlap, catch_up, catch_up_limit, grace, jitter, timeout, max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs, priority, app, note.',
            unknown using errcode = 'PS422';
    end if;

    for option, value in select e.key, e.value from jsonb_each(given) e loop
        written := value #>> '{}';
        if written is null and defaults ? option then
            given := given || jsonb_build_object(option, defaults -> option);
            continue;
        end if;
        continue when written is null and option = any (optional);
        begin
            fine := case
                when option in ('entrypoint', 'expression', 'timezone', 'catch_up', 'app', 'note', 'starts_at',
                                'ends_at')
                    and jsonb_typeof(value) <> 'string' then false
                when option in ('grace', 'jitter', 'timeout', 'backoff', 'max_backoff')
                    and jsonb_typeof(value) not in ('string', 'number') then false
                -- '-1 26:00' is two hours to one session and less than nothing to another, by its IntervalStyle.
                when option in ('grace', 'jitter', 'timeout', 'backoff', 'max_backoff')
                    and written ~ '(^|[^0-9])-' then false
                -- Without an offset it would be read in the session's zone, and in another notation by its DateStyle.
                when option in ('starts_at', 'ends_at') and written !~ iso then false
                when option in ('entrypoint', 'app') then written ~ '^[^[:cntrl:]]{1,200}$'
                when option = 'expression' then length(written) between 1 and 1000
                when option = 'timezone' then length(written) between 1 and 200
                when option = 'args' then jsonb_typeof(value) = 'object'
                when option = 'overlap' then
                    written in ('skip', 'queue', 'allow', 'cancel') or written ~ '^([1-9][0-9]{0,4}|100000)$'
                when option = 'catch_up' then written in ('latest', 'all', 'none')
                when option = 'catch_up_limit' then written::int between 1 and 1000000
                when option in ('grace', 'jitter', 'backoff', 'max_backoff') then
                    written::pgsched.duration is not null
                when option = 'timeout' then written::pgsched.duration > interval '0'
                when option = 'max_attempts' then written::int between 1 and 1000
                when option in ('starts_at', 'ends_at') then written::pgsched.instant is not null
                when option = 'max_runs' then written::int >= 1
                when option = 'priority' then written::int between -100 and 100
                when option = 'note' then true
            end;
        exception when data_exception or integrity_constraint_violation then
            fine := false;
        end;
        if fine is not true then
            raise exception '% is %, not %.', option, case
                    when option in ('entrypoint', 'app') then 'a text of 1 to 200 characters without control characters'
                    when option = 'expression' then 'a text of 1 to 1000 characters'
                    when option = 'timezone' then 'the name of a time zone, such as Europe/Berlin'
                    when option = 'args' then 'a JSON object whose keys are parameter names'
                    when option = 'overlap' then 'skip, queue, allow, cancel, or a number from 1 to 100000'
                    when option = 'catch_up' then 'latest, all or none'
                    when option = 'catch_up_limit' then 'a whole number from 1 to 1000000'
                    when option in ('grace', 'jitter', 'backoff', 'max_backoff') then
                        'an interval from 0 to a hundred years, such as 5 minutes'
                    when option = 'timeout' then 'an interval of more than 0 and at most a hundred years'
                    when option = 'max_attempts' then 'a whole number from 1 to 1000'
                    when option in ('starts_at', 'ends_at') and written ~ iso then
                        'an instant of the years 1900 to 2199'
                    when option in ('starts_at', 'ends_at') then
                        'an instant in ISO 8601 with its UTC offset, such as 2027-01-01T09:00:00Z (add Z or +01:00)'
                    when option = 'max_runs' then 'a whole number from 1 to 2147483647'
                    when option = 'priority' then 'a whole number from -100 to 100'
                    when option = 'note' then 'a text'
                end,
                -- Arguments may hold what is nobody's business.
                case when option = 'args' then 'a JSON ' || jsonb_typeof(value) else left(value::text, 60) end
                using errcode = 'PS422';
        end if;
    end loop;
    return given;
end $$;

create or replace function pgsched.create_schedule(
    name text, entrypoint text, expression text,
    args jsonb default '{}', timezone text default 'UTC', options jsonb default '{}'
) returns bigint
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    made bigint;
    given jsonb := coalesce(create_schedule.options, '{}');
begin
    if create_schedule.name is null or create_schedule.name !~ '^[^[:cntrl:]]{1,200}$' then
        raise exception 'name is a text of 1 to 200 characters without control characters, not %.',
            coalesce(to_jsonb(left(create_schedule.name, 60))::text, 'null') using errcode = 'PS422';
    elsif given ?| array['entrypoint', 'expression', 'args', 'timezone'] then
        raise exception 'entrypoint, expression, args and timezone are parameters of create_schedule(), not options.'
            using errcode = 'PS422';
    elsif jsonb_typeof(given) = 'object' then
        given := '{"overlap": null, "catch_up": null, "catch_up_limit": null, "jitter": null, "priority": null}' || given
            || jsonb_build_object('entrypoint', create_schedule.entrypoint, 'expression', create_schedule.expression,
                                  'args', create_schedule.args, 'timezone', create_schedule.timezone);
    end if;
    given := pgsched.checked_options(given);
    insert into pgsched.schedules (
        name, entrypoint, expression, args, timezone, overlap, catch_up, catch_up_limit, grace, jitter, timeout,
        max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs, priority, app, note
    )
    select create_schedule.name, n.entrypoint, n.expression, n.args, n.timezone, n.overlap, n.catch_up,
        n.catch_up_limit, n.grace, n.jitter, n.timeout, n.max_attempts, n.backoff, n.max_backoff, n.starts_at,
        n.ends_at, n.max_runs, n.priority, n.app, n.note
    from jsonb_populate_record(null::pgsched.schedules, given) n
    on conflict (name) do nothing
    returning id into made;
    if made is null then
        raise exception 'A schedule named "%" exists already.', create_schedule.name using errcode = 'PS409';
    end if;
    return made;
end $$;
comment on function pgsched.create_schedule(text, text, text, jsonb, text, jsonb) is
    'Makes a schedule; a worker plans it as soon as this commits. Options: overlap, catch_up, catch_up_limit, grace, jitter, timeout, max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs, priority, app (only workers of that application run it), note. Returns its id. PS409 where the name is taken, PS422 for what it refuses.';

create or replace function pgsched.alter(name text, changes jsonb) returns void
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
declare
    given constant jsonb := pgsched.checked_options(changes);
begin
    update pgsched.schedules s
    set (entrypoint, expression, timezone, args, overlap, catch_up, catch_up_limit, grace, jitter, timeout,
         max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs, priority, app, note) = (
        select n.entrypoint, n.expression, n.timezone, n.args, n.overlap, n.catch_up, n.catch_up_limit, n.grace,
            n.jitter, n.timeout, n.max_attempts, n.backoff, n.max_backoff, n.starts_at, n.ends_at, n.max_runs,
            n.priority, n.app, n.note
        from jsonb_populate_record(s, given) n
    )
    where s.name = alter.name;
    if not found then
        perform pgsched.no_schedule(name);
    end if;
end $$;

create or replace function pgsched.trigger(name text) returns bigint
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
declare
    made bigint;
    now_ timestamptz;
begin
    loop
        now_ := clock_timestamp();
        insert into pgsched.runs (schedule_id, entrypoint, args, fire_time, previous_fire_time, due_at, priority,
                                  max_attempts, backoff, max_backoff, timeout, origin, app, gated, line)
        select s.id, s.entrypoint, s.args, now_, s.last_run, now_, s.priority,
               s.max_attempts, s.backoff, s.max_backoff, s.timeout, 'trigger', s.app,
               s.overlap <> 'allow' or l.line is not null, l.line
        from pgsched.schedules s
        cross join lateral (select pgsched.line_for(s.entrypoint, s.args, s.id, s.overlap) as line) l
        where s.name = trigger.name
        -- Somebody else's at the same microsecond: this one is the next.
        on conflict (schedule_id, fire_time, again) where status <> 'skipped' and schedule_id is not null
            do nothing
        returning id into made;
        exit when made is not null;
        if not exists (select from pgsched.schedules s where s.name = trigger.name) then
            perform pgsched.no_schedule(name);
        end if;
    end loop;
    return made;
end $$;
