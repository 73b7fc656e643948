-- Which runs have to wait: the overlap of a schedule, the limits of an entrypoint, and the lines of runs at them.

-- --- overlap ---------------------------------------------------------------------------------------------

-- Without a search_path of its own, so that the planner inlines it: its body is resolved when it is made.
create function pgsched.overlap_limit(overlap text) returns int language sql immutable parallel safe
    return case when overlap = 'allow' then 1000000 when overlap ~ '^[0-9]+$' then overlap::int else 1 end;
comment on function pgsched.overlap_limit(text) is
    'How many runs of a schedule may be live at once under this overlap: a million if any number may.';

create function pgsched.overlap_room(schedule_id bigint) returns int
    language sql stable set search_path = pg_catalog, pg_temp as $$
    select pgsched.overlap_limit(s.overlap)
        - (select count(*) from pgsched.executing e where e.schedule_id = s.id)::int
    from pgsched.schedules s
    where s.id = overlap_room.schedule_id and s.overlap <> 'allow'
$$;
comment on function pgsched.overlap_room(bigint) is
    'How many more runs the overlap of a schedule lets run; null if it allows any number, or the schedule is gone.';

-- --- limits ----------------------------------------------------------------------------------------------

create function pgsched.key_of(args jsonb, names text[]) returns text
    language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
    -- Each value in an array of its own, which is empty if there is none: no two keys have one text.
    select case when length(k.key) > 200 then md5(k.key) else k.key end
    from (
        select coalesce(jsonb_agg(case when key_of.args ? n.name then jsonb_build_array(key_of.args -> n.name)
                                  else '[]' end order by n.place)::text, '') as key
        from unnest(key_of.names) with ordinality as n (name, place)
    ) k
$$;
comment on function pgsched.key_of(jsonb, text[]) is
    'The value of a run''s concurrency key: the named arguments as JSON. A missing one, null and an empty text differ.';

create function pgsched.limiting_app(entrypoint text, app text default null) returns text
    language sql stable set search_path = pg_catalog, pg_temp as $$
    select case when f.apps = 1 and (limiting_app.app is not null or not exists (
        select from pgsched.workers w where w.app <> f.app and limiting_app.entrypoint = any (w.entrypoints)
    )) then f.app end
    from (
        select count(*) as apps, min(m.app) as app
        from pgsched.limit_members m
        where m.entrypoint = limiting_app.entrypoint and m.limited and m.app = coalesce(limiting_app.app, m.app)
    ) f
$$;
comment on function pgsched.limiting_app(text, text) is
    'The application at whose limits a run of an entrypoint has to stand in line, or null. A run that names no application stands in line if one application limits the entrypoint and no worker of another one has it.';

create function pgsched.line_for(entrypoint text, args jsonb, schedule_id bigint, overlap text, app text default null)
    returns text language sql stable set search_path = pg_catalog, pg_temp as $$
    select case when coalesce(line_for.overlap, 'allow') <> 'allow' then 's' || line_for.schedule_id
           else 'k' || pgsched.key_of(line_for.args, l.concurrency_key) end
    from pgsched.limit_members m
    join pgsched.limits l on l.gate = m.gate
    where m.entrypoint = line_for.entrypoint and m.limited
        and m.app = pgsched.limiting_app(line_for.entrypoint, line_for.app)
$$;
comment on function pgsched.line_for(text, jsonb, bigint, text, text) is
    'The line that a run joins at the limits of its entrypoint; null if there are none. overlap: its schedule''s.';
