-- The interface for every language. Each function runs as its caller (security invoker), with a search_path of its own,
-- inside the caller's transaction: its effects, and the wake-up of the workers, come with the commit or not at all. A
-- refusal is one sentence with a stable SQLSTATE, and changes nothing:
--   PS404  there is no such schedule or run
--   PS409  it is not in a state for that, or the name is taken
--   PS410  the claim is gone
--   PS422  the value is refused; the sentence says which one, and which values are allowed
-- Some errors only a worker can see: if it cannot read an expression or a time zone, it makes the schedule invalid.

-- --- refusals --------------------------------------------------------------------------------------------

create function pgsched.no_schedule(name text) returns void
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
begin
    if name is null then
        raise exception 'The name of a schedule must be a text, not null.' using errcode = 'PS422';
    end if;
    raise exception 'There is no schedule "%".', name using errcode = 'PS404';
end $$;
comment on function pgsched.no_schedule(text) is 'Refuses a name that no schedule has.';

create function pgsched.no_run(run_id bigint) returns void
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
begin
    if run_id is null then
        raise exception 'The id of a run must be a whole number, not null.' using errcode = 'PS422';
    end if;
    raise exception 'There is no run %.', run_id using errcode = 'PS404';
end $$;
comment on function pgsched.no_run(bigint) is 'Refuses an id that no run has.';

create function pgsched.not_queued() returns void
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
begin
    raise exception 'Nothing was queued, and no run with the unique key can be seen. Look for a trigger, a policy of row level security or a unique index of your own on the table runs.'
        using errcode = 'PS409';
end $$;
comment on function pgsched.not_queued() is 'Refuses to try for ever.';

-- Options mean the same in every session: instants have an offset, durations no sign, under every DateStyle, TimeZone
-- and IntervalStyle.
create function pgsched.checked_options(given jsonb) returns jsonb
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
        raise exception 'The options of a schedule must be a JSON object.' using errcode = 'PS422';
    end if;
    select string_agg(k.key, ', ') into unknown from jsonb_object_keys(given) as k (key)
    where k.key not in ('entrypoint', 'expression') and not defaults ? k.key and k.key <> all (optional);
    if unknown is not null then
        raise exception 'A schedule has no option %: the options are entrypoint, expression, timezone, args, overlap, catch_up, catch_up_limit, grace, jitter, timeout, max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs, priority, app, note.',
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
                -- Without an offset the session's zone would decide, and in another notation its DateStyle.
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
            raise exception '% must be %, not %.', option, case
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
                        'an instant in the years 1900 to 2199'
                    when option in ('starts_at', 'ends_at') then
                        'an instant in ISO 8601 with its UTC offset, such as 2027-01-01T09:00:00Z (add Z or +01:00)'
                    when option = 'max_runs' then 'a whole number from 1 to 2147483647'
                    when option = 'priority' then 'a whole number from -100 to 100'
                    when option = 'note' then 'a text'
                end,
                -- Arguments may hold secrets.
                case when option = 'args' then 'a JSON ' || jsonb_typeof(value) else left(value::text, 60) end
                using errcode = 'PS422';
        end if;
    end loop;
    return given;
end $$;
comment on function pgsched.checked_options(jsonb) is
    'The options of a schedule, checked, with the default instead of null if there is one.';

create function pgsched.check_job(
    entrypoint text, due_at timestamptz, priority int, app text default null, unique_while text default null
) returns void
    language plpgsql stable security invoker set search_path = pg_catalog, pg_temp as $$
begin
    if entrypoint is null or entrypoint ~ '[[:cntrl:]]' or length(entrypoint) not between 1 and 200 then
        raise exception 'entrypoint must be a text of 1 to 200 characters without control characters, not %.',
            coalesce(to_jsonb(left(entrypoint, 60))::text, 'null') using errcode = 'PS422';
    elsif due_at < '1900-01-01 00:00:00+00' or due_at >= '2200-01-01 00:00:00+00' then
        raise exception 'due_at must be an instant in the years 1900 to 2199, not %.', due_at using errcode = 'PS422';
    elsif priority not between -100 and 100 then
        raise exception 'priority must be a whole number from -100 to 100, not %.', priority using errcode = 'PS422';
    elsif app ~ '[[:cntrl:]]' or length(app) not between 1 and 200 then
        raise exception 'app must be a text of 1 to 200 characters without control characters, or null, not %.',
            to_jsonb(left(app, 60)) using errcode = 'PS422';
    elsif unique_while not in ('live', 'waiting') then
        raise exception 'unique_while must be live or waiting, not %.', to_jsonb(left(unique_while, 60))
            using errcode = 'PS422';
    end if;
end $$;
comment on function pgsched.check_job(text, timestamptz, int, text, text) is 'Refuses values that no job may have.';

-- --- schedules -------------------------------------------------------------------------------------------

create function pgsched.create_schedule(
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
        raise exception 'name must be a text of 1 to 200 characters without control characters, not %.',
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
    'Makes a schedule; a worker plans it as soon as this commits. Options: overlap, catch_up, catch_up_limit, grace, jitter, timeout, max_attempts, backoff, max_backoff, starts_at, ends_at, max_runs, priority, app (only workers of that application run it), note. Returns its id. PS409 if the name is taken, PS422 if a value is refused.';

create function pgsched.alter(name text, changes jsonb) returns void
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
comment on function pgsched.alter(text, jsonb) is
    'Changes the named options of a schedule and leaves the rest: entrypoint, expression, args, timezone, and the options of create_schedule(); null sets one back to its default. A new expression, zone or bound has it planned again. PS404, PS422.';

create function pgsched.pause(
    name text, note text default null, until timestamptz default null, backlog boolean default false
) returns void
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
declare
    state text;
begin
    if until < '1900-01-01 00:00:00+00' or until >= '2200-01-01 00:00:00+00' then
        raise exception 'until must be an instant in the years 1900 to 2199, or null, not %.', until using errcode = 'PS422';
    end if;
    update pgsched.schedules s
    set status = 'paused', note = pause.note, paused_until = pause.until, backlog = coalesce(pause.backlog, false)
    where s.name = pause.name and (s.status in ('active', 'paused') or s.status = 'finished' and exists (
        -- Its last fire time is claimed, and still to come. The index of fire times finds that run; a look for any live
        -- run would read the whole table.
        select from pgsched.runs r
        where r.schedule_id = s.id and r.fire_time = s.last_run and r.again = 0
            and r.status <> 'skipped' and r.withdrawn_at is null
            and r.status in ('running', 'queued') and r.attempt <= 1
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
    'Pauses a schedule, until an instant or until it is resumed. With backlog, catch_up applies afterwards to fire times in the pause; without, they are skipped. PS404, PS409 if it is finished or invalid, PS422.';

create function pgsched.resume(name text, backlog boolean default null) returns void
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
    'Resumes a paused schedule. Fire times in the pause are recorded as skipped; with backlog, catch_up applies to them (null: as pause() said). An invalid schedule is planned again. PS404, PS409 if it is finished.';

create function pgsched.trigger(name text) returns bigint
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
        -- Waits for a removal that is under way: a run of a removed schedule would wait for ever.
        for key share of s
        -- Somebody else triggered it in the same microsecond: this run takes the next one.
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
comment on function pgsched.trigger(text) is
    'Runs a schedule now, in any status, or as soon as its overlap lets it; its fire times stay as they are. Returns the run''s id. PS404.';

create function pgsched.remove(name text) returns void
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
begin
    delete from pgsched.schedules s where s.name = remove.name;
    if not found then
        perform pgsched.no_schedule(name);
    end if;
end $$;
comment on function pgsched.remove(text) is 'Removes a schedule and its queued runs; its history stays. PS404.';

-- --- runs ------------------------------------------------------------------------------------------------

create function pgsched.run_with_key(entrypoint text, unique_key text, app text, unique_while text) returns bigint
    language sql stable security invoker set search_path = pg_catalog, pg_temp as $$
    select r.id from pgsched.runs r
    where r.entrypoint = run_with_key.entrypoint and r.unique_key = run_with_key.unique_key
        and coalesce(r.app, '') = coalesce(run_with_key.app, '') and r.unique_while = 'live'
        and r.status in ('queued', 'running') and coalesce(run_with_key.unique_while, 'live') = 'live'
    union all
    select r.id from pgsched.runs r
    where r.entrypoint = run_with_key.entrypoint and r.unique_key = run_with_key.unique_key
        and coalesce(r.app, '') = coalesce(run_with_key.app, '') and r.unique_while = 'waiting'
        and r.status = 'queued' and run_with_key.unique_while = 'waiting'
$$;
comment on function pgsched.run_with_key(text, text, text, text) is 'The run that holds a unique key, or null.';

create function pgsched.enqueue_unique(
    entrypoint text, args jsonb default '{}', due_at timestamptz default null, priority int default 0,
    unique_key text default null, app text default null, unique_while text default 'live'
) returns table (run_id bigint, queued boolean)
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    perform pgsched.check_job(entrypoint, due_at, priority, app, unique_while);
    if jsonb_typeof(args) <> 'object' then
        raise exception 'args must be a JSON object whose keys are parameter names, not a JSON %.', jsonb_typeof(args)
            using errcode = 'PS422';
    elsif length(unique_key) > 500 then
        raise exception 'unique_key must be a text of at most 500 characters, not of %.', length(unique_key)
            using errcode = 'PS422';
    end if;
    for turn in 1..10 loop
        insert into pgsched.runs (entrypoint, args, due_at, priority, unique_key, unique_while, app)
        values (enqueue_unique.entrypoint, coalesce(enqueue_unique.args, '{}'),
                coalesce(enqueue_unique.due_at, clock_timestamp()), coalesce(enqueue_unique.priority, 0),
                enqueue_unique.unique_key, coalesce(enqueue_unique.unique_while, 'live'), enqueue_unique.app)
        on conflict do nothing
        returning id into run_id;
        queued := run_id is not null;
        exit when queued;
        run_id := pgsched.run_with_key(entrypoint, unique_key, app, unique_while);
        -- It may have ended between the two statements: then there is room for a new one.
        exit when run_id is not null;
    end loop;
    if run_id is null then
        perform pgsched.not_queued();
    end if;
    return next;
end $$;
comment on function pgsched.enqueue_unique(text, jsonb, timestamptz, int, text, text, text) is
    'Queues one run of an entrypoint as enqueue() does, and says whether it did: returns the run''s id, and false if that run had the unique_key already. PS409 if nothing can be queued, PS422 if a value is refused.';

create function pgsched.enqueue(
    entrypoint text, args jsonb default '{}', due_at timestamptz default null, priority int default 0,
    unique_key text default null, app text default null, unique_while text default 'live'
) returns bigint
    language sql security invoker set search_path = pg_catalog, pg_temp as $$
    select e.run_id from pgsched.enqueue_unique(
        enqueue.entrypoint, enqueue.args, enqueue.due_at, enqueue.priority, enqueue.unique_key, enqueue.app,
        enqueue.unique_while) e
$$;
comment on function pgsched.enqueue(text, jsonb, timestamptz, int, text, text, text) is
    'Queues one run of an entrypoint and returns its id. app: only workers of that application run it; null: any that has the entrypoint. With a unique_key that a live run has (unique_while waiting: a queued one), returns that run''s id. PS409 if nothing can be queued, PS422 if a value is refused.';

create function pgsched.enqueue_many_unique(
    entrypoint text, args jsonb[], due_at timestamptz default null, priority int default 0,
    unique_keys text[] default null, app text default null, unique_while text default 'live'
) returns table (run_id bigint, queued boolean)
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    count_ constant int := coalesce(cardinality(enqueue_many_unique.args), 0);
    now_ constant timestamptz := clock_timestamp();
    wrong bigint;
    keyless bigint[];
    ids bigint[];
    made bigint[] := '{}';
begin
    perform pgsched.check_job(entrypoint, due_at, priority, app, unique_while);
    if cardinality(unique_keys) <> count_ then
        raise exception 'unique_keys must have as many elements as args, %, not %.', count_, cardinality(unique_keys)
            using errcode = 'PS422';
    end if;
    select min(w.place) into wrong
    from unnest(enqueue_many_unique.args) with ordinality as w (args, place) where jsonb_typeof(w.args) <> 'object';
    if wrong is not null then
        raise exception 'args number % must be a JSON object whose keys are parameter names.', wrong
            using errcode = 'PS422';
    end if;
    select min(w.place) into wrong
    from unnest(unique_keys) with ordinality as w (key, place) where length(w.key) > 500;
    if wrong is not null then
        raise exception 'unique_key number % must be a text of at most 500 characters.', wrong using errcode = 'PS422';
    end if;

    for turn in 1..10 loop
        with added as (
            insert into pgsched.runs (entrypoint, args, due_at, priority, unique_key, unique_while, app)
            select enqueue_many_unique.entrypoint, coalesce(w.args, '{}'),
                -- They run in the order of the batch, not of their ids.
                coalesce(enqueue_many_unique.due_at, now_ - (count_ - w.place) * interval '1 microsecond'),
                coalesce(enqueue_many_unique.priority, 0), w.key,
                coalesce(enqueue_many_unique.unique_while, 'live'), enqueue_many_unique.app
            from unnest(enqueue_many_unique.args, enqueue_many_unique.unique_keys)
                with ordinality as w (args, key, place)
            where w.key is not null or keyless is null
            -- By key: two batches that share keys wait for each other in one order, and never in a ring.
            order by w.key, w.place
            on conflict do nothing
            returning id, unique_key
        )
        select coalesce(keyless, array_agg(a.id order by a.id) filter (where a.unique_key is null), '{}'),
            made || coalesce(array_agg(a.id) filter (where a.unique_key is not null), '{}')
        into keyless, made from added a;
        if unique_keys is null then
            if cardinality(keyless) < count_ then
                perform pgsched.not_queued();
            end if;
            return query select k.id, true from unnest(keyless) with ordinality as k (id, place) order by k.place;
            return;
        end if;

        select coalesce(array_agg(case when w.key is null then keyless[w.nth] else coalesce(l.id, q.id) end order by w.place), '{}')
        into ids
        from (
            select u.key, u.place, row_number() over (partition by u.key is null order by u.place) as nth
            from unnest(enqueue_many_unique.unique_keys) with ordinality as u (key, place)
        ) w
        left join pgsched.runs l on l.entrypoint = enqueue_many_unique.entrypoint and l.unique_key = w.key
            and coalesce(l.app, '') = coalesce(enqueue_many_unique.app, '') and l.unique_while = 'live'
            and l.status in ('queued', 'running') and coalesce(enqueue_many_unique.unique_while, 'live') = 'live'
        left join pgsched.runs q on q.entrypoint = enqueue_many_unique.entrypoint and q.unique_key = w.key
            and coalesce(q.app, '') = coalesce(enqueue_many_unique.app, '') and q.unique_while = 'waiting'
            and q.status = 'queued' and enqueue_many_unique.unique_while = 'waiting';
        -- One may have ended between the two statements: then there is room for a new one.
        if array_position(ids, null) is null then
            return query
                select w.id, w.key is null or w.nth = 1 and m.id is not null
                from (
                    select u.id, u.key, u.place, row_number() over (partition by u.id order by u.place) as nth
                    from unnest(ids, enqueue_many_unique.unique_keys) with ordinality as u (id, key, place)
                ) w
                left join unnest(made) as m (id) on m.id = w.id
                order by w.place;
            return;
        end if;
    end loop;
    perform pgsched.not_queued();
end $$;
comment on function pgsched.enqueue_many_unique(text, jsonb[], timestamptz, int, text[], text, text) is
    'Queues runs of an entrypoint as enqueue_many() does, and says of each place whether it did: returns the run''s id, and false if that run had the unique_key already. PS409 if nothing can be queued, PS422 if a value is refused.';

create function pgsched.enqueue_many(
    entrypoint text, args jsonb[], due_at timestamptz default null, priority int default 0,
    unique_keys text[] default null, app text default null, unique_while text default 'live'
) returns bigint[]
    language sql security invoker set search_path = pg_catalog, pg_temp as $$
    select coalesce(array_agg(e.run_id order by e.place), '{}')
    from pgsched.enqueue_many_unique(
        enqueue_many.entrypoint, enqueue_many.args, enqueue_many.due_at, enqueue_many.priority,
        enqueue_many.unique_keys, enqueue_many.app, enqueue_many.unique_while
    ) with ordinality as e (run_id, queued, place)
$$;
comment on function pgsched.enqueue_many(text, jsonb[], timestamptz, int, text[], text, text) is
    'Queues one run of an entrypoint for each of the arguments, all or none, and returns their ids, in order. unique_keys: one for each, or null. If a live run has it (unique_while waiting: a queued one), an earlier one of the batch included, nothing is queued for that place. PS409 if nothing can be queued, PS422 if a value is refused.';

create function pgsched.cancel(run_id bigint) returns text
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
declare
    state text;
begin
    -- Lock first and then a look: in between, the run could be claimed, or end. The lock does not wait for an enqueue
    -- with this run's key in a transaction that stays open.
    select r.status into state from pgsched.runs r where r.id = run_id for no key update;
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
    'Cancels a queued run (returns cancelled), or asks the worker of a running one to (returns requested). PS404, PS409 if it has ended.';

create function pgsched.appended(entries jsonb, entry jsonb) returns jsonb
    language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
    -- A run of a thousand attempts must not become a book.
    select case when jsonb_array_length(entries) >= 20 then entries - 0 else coalesce(entries, '[]') end || entry
$$;
comment on function pgsched.appended(jsonb, jsonb) is 'A list with one more entry; only the newest twenty are kept.';

create function pgsched.retry(run_id bigint) returns void
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
    -- Waits for a removal that is under way: a run of a removed schedule would wait for ever.
    perform from pgsched.schedules s where s.id = found_.schedule_id for key share;
    update pgsched.runs r
    set status = 'queued',
        -- It may have been cancelled ahead of its fire time, and never starts before that.
        due_at = greatest(clock_timestamp(), r.fire_time),
        max_attempts = case when max_attempts is not null then greatest(max_attempts, attempt + 1) end,
        -- The row itself says how the last attempt ended, as long as it is the last.
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
comment on function pgsched.retry(bigint) is
    'Queues a failed or cancelled run again, with at least one more attempt; its errors stay. If an earlier attempt goes on in a thread, it waits until that has ended or its worker is gone. PS404, PS409 if it has neither failed nor been cancelled, or if a live run has its unique_key.';

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
        exception when sqlstate 'PS409' then  -- another run has its unique key by now
        end;
    end loop;
end $$;
comment on function pgsched.retry_many(bigint[]) is
    'Queues those of these runs again that have failed or been cancelled, as retry() does. Passes over those that somebody else has locked, and those whose unique_key a live run has. Returns the ids of those it queued.';

-- --- a worker's calls ------------------------------------------------------------------------------------

create function pgsched.commit_run(run_id bigint, token bigint, worker uuid, started_at timestamptz default null)
    returns void language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
declare
    now_ timestamptz := clock_timestamp();
begin
    -- Waits for a beat or a reaper that holds the row right now, and then judges its result: that takes read committed.
    update pgsched.runs r
    set status = 'succeeded', committed_at = now_, finished_at = now_,
        -- The worker guesses this clock, so its start may lie a moment ahead.
        started_at = least(coalesce(r.started_at, commit_run.started_at), now_)
    where r.id = commit_run.run_id and r.token = commit_run.token and r.worker = commit_run.worker
        and r.status = 'running';
    if not found then
        raise exception 'run % is no longer held by that claim', run_id using errcode = 'PS410';
    end if;
end $$;
comment on function pgsched.commit_run(bigint, bigint, uuid, timestamptz) is
    'Writes a run''s success inside the application''s own transaction, under its claim: both commit, or neither does. Send it together with the COMMIT: until that comes, nobody can take the claim away. PS410: the claim is gone.';

create function pgsched.waiting_instead(run_id bigint, batch bigint[]) returns bigint
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
    -- A look of its own, after the lock: it sees commits since the caller's began.
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
comment on function pgsched.waiting_instead(bigint, bigint[]) is
    'For a run that goes back to the queue with a key that only one waiting run may have: the other run that waits, an earlier one of the batch included; 0 for none, null if that is not certain yet.';
