-- Options mean the same in every session: instants have an offset, durations no sign, whatever DateStyle, TimeZone and
-- IntervalStyle say.

create or replace function pgsched.checked_options(given jsonb) returns jsonb
    language plpgsql stable security invoker set search_path = pg_catalog, pg_temp as $$
declare
    defaults constant jsonb := '{"timezone": "UTC", "args": {}, "overlap": "skip", "catch_up": "latest",
        "catch_up_limit": 1000, "jitter": "0", "priority": 0}';
    optional constant text[] := array['grace', 'timeout', 'max_attempts', 'backoff', 'max_backoff', 'starts_at',
                                      'ends_at', 'max_runs', 'note'];
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
                -- '-1 26:00' is two hours to one session and less than nothing to another, by its IntervalStyle.
                when option in ('grace', 'jitter', 'timeout', 'backoff', 'max_backoff')
                    and written ~ '(^|[^0-9])-' then false
                -- Without an offset it would be read in the session's zone, and in another notation by its DateStyle.
                when option in ('starts_at', 'ends_at') and written !~ iso then false
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
comment on function pgsched.checked_options(jsonb) is
    'The options of a schedule, checked, with the default in the place of null where there is one.';
