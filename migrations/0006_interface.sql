-- The interface for every language, with its refusals. Each function runs as its caller (security invoker), with a
-- search_path of its own, inside the caller's transaction: what it does, and the wake-up of the workers, come with the
-- commit or not at all. What it refuses is one sentence with a stable SQLSTATE, and changes nothing:
--   PS404  there is no such schedule or run
--   PS409  it is not in a state for that, or the name is taken
--   PS422  a value that is refused; the sentence says which, and what it may be
-- What only a worker can judge, it judges: an expression or a time zone that cannot be read makes a schedule invalid.

-- --- refusals --------------------------------------------------------------------------------------------

create function pgsched.no_schedule(name text) returns void
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
begin
    if name is null then
        raise exception 'The name of a schedule is a text, not null.' using errcode = 'PS422';
    end if;
    raise exception 'There is no schedule "%".', name using errcode = 'PS404';
end $$;
comment on function pgsched.no_schedule(text) is 'Refuses a name that no schedule has.';

create function pgsched.no_run(run_id bigint) returns void
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
begin
    if run_id is null then
        raise exception 'The id of a run is a whole number, not null.' using errcode = 'PS422';
    end if;
    raise exception 'There is no run %.', run_id using errcode = 'PS404';
end $$;
comment on function pgsched.no_run(bigint) is 'Refuses an id that no run has.';

create function pgsched.checked_options(given jsonb) returns jsonb
    language plpgsql stable security invoker set search_path = pg_catalog, pg_temp as $$
declare
    defaults constant jsonb := '{"timezone": "UTC", "args": {}, "overlap": "skip", "catch_up": "latest",
        "catch_up_limit": 1000, "jitter": "0", "priority": 0}';
    optional constant text[] := array['grace', 'timeout', 'max_attempts', 'backoff', 'max_backoff', 'starts_at',
                                      'ends_at', 'max_runs', 'note'];
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
        raise exception 'A schedule has no option %: there are entrypoint, expression, timezone, args, overlap, catch_up, catch_up_limit, grace, jitter, timeout, max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs, priority, note.',
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
                when option in ('entrypoint', 'expression', 'timezone', 'catch_up', 'note', 'starts_at', 'ends_at')
                    and jsonb_typeof(value) <> 'string' then false
                when option in ('grace', 'jitter', 'timeout', 'backoff', 'max_backoff')
                    and jsonb_typeof(value) not in ('string', 'number') then false
                when option = 'entrypoint' then written ~ '^[^[:cntrl:]]{1,200}$'
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
                    when option = 'entrypoint' then 'a text of 1 to 200 characters without control characters'
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
                    when option in ('starts_at', 'ends_at') then 'an instant of the years 1900 to 2199'
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
comment on function pgsched.checked_options(jsonb) is
    'The options of a schedule, checked, with the default in the place of null where there is one.';

create function pgsched.check_job(entrypoint text, due_at timestamptz, priority int) returns void
    language plpgsql stable security invoker set search_path = pg_catalog, pg_temp as $$
begin
    if entrypoint is null or entrypoint !~ '^[^[:cntrl:]]{1,200}$' then
        raise exception 'entrypoint is a text of 1 to 200 characters without control characters, not %.',
            coalesce(to_jsonb(left(entrypoint, 60))::text, 'null') using errcode = 'PS422';
    elsif due_at < '1900-01-01 00:00:00+00' or due_at >= '2200-01-01 00:00:00+00' then
        raise exception 'due_at is an instant of the years 1900 to 2199, not %.', due_at using errcode = 'PS422';
    elsif priority not between -100 and 100 then
        raise exception 'priority is a whole number from -100 to 100, not %.', priority using errcode = 'PS422';
    end if;
end $$;
comment on function pgsched.check_job(text, timestamptz, int) is 'Refuses what no job may be.';

-- --- schedules -------------------------------------------------------------------------------------------

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
        max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs, priority, note
    )
    select create_schedule.name, n.entrypoint, n.expression, n.args, n.timezone, n.overlap, n.catch_up,
        n.catch_up_limit, n.grace, n.jitter, n.timeout, n.max_attempts, n.backoff, n.max_backoff, n.starts_at,
        n.ends_at, n.max_runs, n.priority, n.note
    from jsonb_populate_record(null::pgsched.schedules, given) n
    on conflict (name) do nothing
    returning id into made;
    if made is null then
        raise exception 'A schedule named "%" exists already.', create_schedule.name using errcode = 'PS409';
    end if;
    return made;
end $$;
comment on function pgsched.create_schedule(text, text, text, jsonb, text, jsonb) is
    'Makes a schedule; a worker plans it as soon as this commits. Options: overlap, catch_up, catch_up_limit, grace, jitter, timeout, max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs, priority, note. Returns its id. PS409 where the name is taken, PS422 for what it refuses.';

create function pgsched.alter(name text, changes jsonb) returns void
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
declare
    given constant jsonb := pgsched.checked_options(changes);
begin
    update pgsched.schedules s
    set (entrypoint, expression, timezone, args, overlap, catch_up, catch_up_limit, grace, jitter, timeout,
         max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs, priority, note) = (
        select n.entrypoint, n.expression, n.timezone, n.args, n.overlap, n.catch_up, n.catch_up_limit, n.grace,
            n.jitter, n.timeout, n.max_attempts, n.backoff, n.max_backoff, n.starts_at, n.ends_at, n.max_runs,
            n.priority, n.note
        from jsonb_populate_record(s, given) n
    )
    where s.name = alter.name;
    if not found then
        perform pgsched.no_schedule(name);
    end if;
end $$;
comment on function pgsched.alter(text, jsonb) is
    'Changes what is named of a schedule and leaves the rest: entrypoint, expression, args, timezone, and the options of create_schedule(); null sets one back to its default. A new expression, zone or bound has it planned anew. PS404, PS422.';

create or replace function pgsched.pause(
    name text, note text default null, until timestamptz default null, backlog boolean default false
) returns void
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
declare
    state text;
begin
    if until < '1900-01-01 00:00:00+00' or until >= '2200-01-01 00:00:00+00' then
        raise exception 'until is an instant of the years 1900 to 2199, or null, not %.', until using errcode = 'PS422';
    end if;
    update pgsched.schedules s
    set status = 'paused', note = pause.note, paused_until = pause.until, backlog = coalesce(pause.backlog, false)
    where s.name = pause.name and (s.status in ('active', 'paused') or s.status = 'finished' and exists (
        -- Its last fire time is claimed, and still to come.
        select from pgsched.runs r
        where r.schedule_id = s.id and r.status in ('running', 'queued') and r.attempt <= 1
            and r.started_at is null and r.due_at > clock_timestamp()
    ));
    if not found then
        select s.status into state from pgsched.schedules s where s.name = pause.name;
        if state is null then
            perform pgsched.no_schedule(name);
        end if;
        raise exception 'Schedule "%" is %: only an active or a paused one can be paused.', name, state
            using errcode = 'PS409';
    end if;
end $$;
comment on function pgsched.pause(text, text, timestamptz, boolean) is
    'Pauses a schedule, until an instant or until it is resumed. With backlog, what falls into the pause is treated by catch_up afterwards instead of being skipped. PS404, PS409 where it is finished or invalid, PS422.';

create or replace function pgsched.resume(name text, backlog boolean default null) returns void
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
declare
    state text;
begin
    update pgsched.schedules s
    set status = 'active', backlog = coalesce(resume.backlog, s.backlog)
    where s.name = resume.name and s.status in ('active', 'paused', 'invalid');
    if not found then
        select s.status into state from pgsched.schedules s where s.name = resume.name;
        if state is null then
            perform pgsched.no_schedule(name);
        end if;
        raise exception 'Schedule "%" is % and cannot be resumed: nothing more of it will fire.', name, state
            using errcode = 'PS409';
    end if;
end $$;
comment on function pgsched.resume(text, boolean) is
    'Lets a paused schedule go on; what it missed meanwhile is recorded, and run only with backlog, by catch_up (null: as pause() said). An invalid one is planned again. PS404, PS409 where it is finished.';

create or replace function pgsched.trigger(name text) returns bigint
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
declare
    made bigint;
    now_ timestamptz;
begin
    loop
        now_ := clock_timestamp();
        insert into pgsched.runs (schedule_id, entrypoint, args, fire_time, previous_fire_time, due_at, priority,
                                  max_attempts, backoff, max_backoff, timeout, origin, gated, line)
        select s.id, s.entrypoint, s.args, now_, s.last_run, now_, s.priority,
               s.max_attempts, s.backoff, s.max_backoff, s.timeout, 'trigger',
               s.overlap <> 'allow' or l.line is not null, l.line
        from pgsched.schedules s
        cross join lateral (select pgsched.line_for(s.entrypoint, s.args, s.id, s.overlap) as line) l
        where s.name = trigger.name
        -- Somebody else's at the same microsecond: this one is the next.
        on conflict (schedule_id, fire_time, again) where status <> 'skipped' do nothing
        returning id into made;
        exit when made is not null;
        if not exists (select from pgsched.schedules s where s.name = trigger.name) then
            perform pgsched.no_schedule(name);
        end if;
    end loop;
    return made;
end $$;
comment on function pgsched.trigger(text) is
    'Runs a schedule now, whatever its status, or as soon as its overlap lets it; its fire times stay as they are. Returns the run''s id. PS404.';

create or replace function pgsched.remove(name text) returns void
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
begin
    delete from pgsched.schedules s where s.name = remove.name;
    if not found then
        perform pgsched.no_schedule(name);
    end if;
end $$;
comment on function pgsched.remove(text) is 'Removes a schedule and what it has queued; its history stays. PS404.';

-- --- runs ------------------------------------------------------------------------------------------------

create or replace function pgsched.enqueue(
    entrypoint text, args jsonb default '{}', due_at timestamptz default null,
    priority int default 0, unique_key text default null
) returns bigint
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    made bigint;
    line_ text;
begin
    perform pgsched.check_job(enqueue.entrypoint, enqueue.due_at, enqueue.priority);
    if jsonb_typeof(enqueue.args) <> 'object' then
        raise exception 'args is a JSON object whose keys are parameter names, not a JSON %.',
            jsonb_typeof(enqueue.args) using errcode = 'PS422';
    elsif length(enqueue.unique_key) > 500 then
        raise exception 'unique_key is a text of at most 500 characters, not of %.', length(enqueue.unique_key)
            using errcode = 'PS422';
    end if;
    line_ := pgsched.line_for(enqueue.entrypoint, coalesce(enqueue.args, '{}'), null, null);
    loop
        insert into pgsched.runs (entrypoint, args, due_at, priority, unique_key, gated, line)
        values (enqueue.entrypoint, coalesce(enqueue.args, '{}'), coalesce(enqueue.due_at, clock_timestamp()),
                coalesce(enqueue.priority, 0), enqueue.unique_key, line_ is not null, line_)
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
    'Queues one run of an entrypoint. With a unique_key that a live run has, returns that run''s id. PS422 for what it refuses.';

create function pgsched.enqueue_many(
    entrypoint text, args jsonb[], due_at timestamptz default null,
    priority int default 0, unique_keys text[] default null
) returns bigint[]
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    count_ constant int := coalesce(cardinality(enqueue_many.args), 0);
    now_ constant timestamptz := clock_timestamp();
    wrong bigint;
    keyless bigint[];
    ids bigint[];
begin
    perform pgsched.check_job(enqueue_many.entrypoint, enqueue_many.due_at, enqueue_many.priority);
    if cardinality(unique_keys) <> count_ then
        raise exception 'unique_keys are as many as there are args, %, not %.', count_, cardinality(unique_keys)
            using errcode = 'PS422';
    end if;
    select min(w.place) into wrong
    from unnest(enqueue_many.args) with ordinality as w (args, place) where jsonb_typeof(w.args) <> 'object';
    if wrong is not null then
        raise exception 'args number % is not a JSON object whose keys are parameter names.', wrong
            using errcode = 'PS422';
    end if;
    select min(w.place) into wrong
    from unnest(unique_keys) with ordinality as w (key, place) where length(w.key) > 500;
    if wrong is not null then
        raise exception 'unique_key number % has more than 500 characters.', wrong using errcode = 'PS422';
    end if;

    loop
        with added as (
            insert into pgsched.runs (entrypoint, args, due_at, priority, unique_key, gated, line)
            select enqueue_many.entrypoint, coalesce(w.args, '{}'),
                -- They run in the order of the batch, whatever the order of their ids.
                coalesce(enqueue_many.due_at, now_ - (count_ - w.place) * interval '1 microsecond'),
                coalesce(enqueue_many.priority, 0), w.key, l.entrypoint is not null,
                case when l.entrypoint is not null then 'k' || pgsched.key_of(w.args, l.concurrency_key) end
            from unnest(enqueue_many.args, enqueue_many.unique_keys) with ordinality as w (args, key, place)
            left join pgsched.limits l on l.entrypoint = enqueue_many.entrypoint and l.limited
            where w.key is not null or keyless is null
            -- By key: two batches that share keys wait for each other in one order, and never in a ring.
            order by w.key, w.place
            on conflict (entrypoint, unique_key) where unique_key is not null and status in ('queued', 'running')
            do nothing
            returning id, unique_key
        )
        select coalesce(keyless, array_agg(a.id order by a.id) filter (where a.unique_key is null), '{}')
        into keyless from added a;
        exit when unique_keys is null;

        select coalesce(array_agg(case when w.key is null then keyless[w.nth] else r.id end order by w.place), '{}')
        into ids
        from (
            select u.key, u.place, row_number() over (partition by u.key is null order by u.place) as nth
            from unnest(enqueue_many.unique_keys) with ordinality as u (key, place)
        ) w
        left join pgsched.runs r on r.entrypoint = enqueue_many.entrypoint and r.unique_key = w.key
            and r.status in ('queued', 'running');
        -- One may have ended between the two statements: then there is room for a new one.
        exit when array_position(ids, null) is null;
    end loop;
    return coalesce(ids, keyless);
end $$;
comment on function pgsched.enqueue_many(text, jsonb[], timestamptz, int, text[]) is
    'Queues one run of an entrypoint for each of the arguments, all or none. unique_keys: one for each, or null; where a live run has it, an earlier one of the batch too, nothing is queued for it. Returns the runs'' ids, in order. PS422 for what it refuses.';

create or replace function pgsched.cancel(run_id bigint) returns text
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
declare
    state text;
begin
    -- The row is locked first: between a look and a write it could be claimed, or end.
    select r.status into state from pgsched.runs r where r.id = run_id for update;
    if state is null then
        perform pgsched.no_run(run_id);
    elsif state = 'queued' then
        update pgsched.runs set status = 'cancelled', reason = 'cancelled on request', finished_at = clock_timestamp()
        where id = run_id;
        return 'cancelled';
    elsif state = 'running' then
        update pgsched.runs set cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp())
        where id = run_id;
        return 'requested';
    end if;
    raise exception 'Run % has already ended: %.', run_id, state using errcode = 'PS409';
end $$;
comment on function pgsched.cancel(bigint) is
    'Cancels a queued run (returns cancelled), or asks the worker of a running one to (returns requested). PS404, PS409 where it has ended.';

create function pgsched.retry_many(run_ids bigint[]) returns setof bigint
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
declare
    each bigint;
begin
    for each in
        select r.id from pgsched.runs r
        where r.id = any (run_ids) and r.status in ('failed', 'cancelled')
        order by r.id
        for update skip locked
    loop
        begin
            perform pgsched.retry(each);
            return next each;
        exception when sqlstate 'PS409' then  -- its unique key is another's by now
        end;
    end loop;
end $$;
comment on function pgsched.retry_many(bigint[]) is
    'Queues those of these runs again that have failed or been cancelled, as retry() does. Passes over those that somebody else has locked, and those whose unique_key a live run has. Returns the ids of those it queued.';
