-- Limits belong to an application's entrypoint, or to a name that several entrypoints share. Unique keys can hold while a
-- run waits. The columns that only pgsched writes are guarded, and a role that may enqueue needs a few columns.

-- --- whose limits ------------------------------------------------------------------------------------------

-- A row is found by its gate: a JSON array of the application and the entrypoint, or of the shared name alone.
alter table pgsched.limits
    add column gate text,
    add column app text,
    add column shared text constraint limits_shared_check check (shared !~ '[[:cntrl:]]' and length(shared) between 1 and 200),
    drop constraint limits_pkey,
    alter column entrypoint drop not null;
update pgsched.limits set app = substr(owner, 6), gate = jsonb_build_array(substr(owner, 6), entrypoint)::text;
alter table pgsched.limits
    add primary key (gate),
    add constraint limits_gate_check check (num_nulls(app, entrypoint) = case when shared is null then 0 else 2 end);

comment on table pgsched.limits is
    'One row for each application''s entrypoint that has limits or had some, and for each shared name. Workers write it at their start, from the code. The claim locks it and counts under that lock.';
comment on column pgsched.limits.gate is
    'Its key: a JSON array of the application and the entrypoint, or of the shared name.';
comment on column pgsched.limits.app is 'The application. Null: the limits are shared by name.';
comment on column pgsched.limits.entrypoint is 'The entrypoint. Null: the limits are shared by name.';
comment on column pgsched.limits.shared is
    'The name under which entrypoints of any application share these limits. Null: they are one entrypoint''s own.';
comment on column pgsched.limits.owner is 'code: and the name of the application that declared it last.';
comment on column pgsched.limits.concurrency is 'At most this many runs are running, on all workers together.';

create table pgsched.limit_members (
    entrypoint text not null,
    app        text not null,
    gate       text not null references pgsched.limits (gate),
    limited    boolean not null,
    primary key (entrypoint, app)
);
comment on table pgsched.limit_members is
    'One row for each application''s entrypoint that has limits or had some: which limits they are.';
comment on column pgsched.limit_members.gate is 'The limits that count its runs.';
comment on column pgsched.limit_members.limited is
    'Whether it has limits now. If not, only the runs that still stand in line go through the gate.';
insert into pgsched.limit_members select l.entrypoint, l.app, l.gate, l.limited from pgsched.limits l;

alter table pgsched.runs add column limited_by text;
comment on column pgsched.runs.limited_by is
    'The application at whose limits it stands in line. Null: it stands in no line, and was claimed from none.';

create or replace function pgsched.key_of(args jsonb, names text[]) returns text
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

-- One query for all who look: the application with the limits, or null.
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

drop function pgsched.line_for(text, jsonb, bigint, text);
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
    'The line in which a run queues at the limits of its entrypoint; null if there are none. overlap: its schedule''s.';

-- What runs counts at the limits of the application that runs it.
create view pgsched.running_at_limits as
    select m.gate, r.id, r.args
    from pgsched.runs r
    join pgsched.limit_members m on m.entrypoint = r.entrypoint
    left join pgsched.workers w on w.id = r.worker
    where r.status = 'running' and coalesce(r.limited_by, r.app, w.app, m.app) = m.app;
comment on view pgsched.running_at_limits is 'The running runs that each limit counts.';

-- What stands in line already stands there as runs do now.
update pgsched.runs r
set limited_by = l.app,
    line = case when r.line like 'k%' then 'k' || pgsched.key_of(r.args, l.concurrency_key) else r.line end
from pgsched.limits l
where r.status in ('queued', 'running') and r.line is not null and l.entrypoint = r.entrypoint;
update pgsched.runs set line = null where line is not null and limited_by is null;
alter table pgsched.runs add constraint runs_line_check check ((line is null) = (limited_by is null));

drop index pgsched.runs_lines;
create index runs_lines on pgsched.runs (limited_by, entrypoint, line, (-priority), due_at, id)
    where status = 'queued' and gated and line is not null;
drop index pgsched.runs_urgent;
create index runs_urgent on pgsched.runs (limited_by, entrypoint, (-priority), due_at, id)
    where status = 'queued' and gated and line is not null;

create or replace function pgsched.schedule_moved() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    -- One snapshot: a run that goes from running to queued meanwhile is in one of the two lists, and its row is judged
    -- again once its writer has committed. Arrays, so that every session finds the rows by their ids.
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

-- --- unique keys -------------------------------------------------------------------------------------------

alter table pgsched.runs add column unique_while text not null default 'live'
    constraint runs_unique_while_check check (unique_while in ('live', 'waiting'));
comment on column pgsched.runs.unique_key is
    'At most one run of an entrypoint and of an application (or of none) has it, as long as unique_while says.';
comment on column pgsched.runs.unique_while is
    'live: no other run with the key is queued or running. waiting: no other one is queued, and any number may be running.';

drop index pgsched.runs_unique_key;
create unique index runs_unique_live on pgsched.runs (entrypoint, unique_key, (coalesce(app, '')))
    where unique_key is not null and unique_while = 'live' and status in ('queued', 'running');
create unique index runs_unique_waiting on pgsched.runs (entrypoint, unique_key, (coalesce(app, '')))
    where unique_key is not null and unique_while = 'waiting' and status = 'queued';
create index runs_unique_running on pgsched.runs (entrypoint, unique_key)
    where unique_key is not null and unique_while = 'waiting' and status = 'running';
comment on index pgsched.runs_unique_live is 'No two live runs have one unique key.';
comment on index pgsched.runs_unique_waiting is 'No two queued runs have one unique key that holds while a run waits.';

-- --- what a client's insert means --------------------------------------------------------------------------

-- With the owner's rights, so that a role that may only enqueue needs no other column and reads no other table.
create function pgsched.run_queued() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    overlap_ text := 'allow';
begin
    if new.schedule_id is not null then
        overlap_ := coalesce((select s.overlap from pgsched.schedules s where s.id = new.schedule_id), 'allow');
    end if;
    new.limited_by := null;
    new.line := null;
    if exists (select from pgsched.limit_members m where m.entrypoint = new.entrypoint and m.limited) then
        new.limited_by := pgsched.limiting_app(new.entrypoint, new.app);
        if new.limited_by is not null then
            new.line := pgsched.line_for(new.entrypoint, new.args, new.schedule_id, overlap_, new.limited_by);
        end if;
    end if;
    new.gated := overlap_ <> 'allow' or new.line is not null;
    return new;
end $$;
comment on function pgsched.run_queued() is 'A client queues a run: finds the line in which it has to stand.';
revoke execute on function pgsched.run_queued() from public;

create function pgsched.run_waits() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    -- Whether a running run with this key may go back to the queue depends on whether this transaction commits. The
    -- worker sees from the lock that it has to ask again. The lock is in nobody's way but of that one write: beats and
    -- claims are compatible with it.
    if tg_when = 'BEFORE' then
        perform 1 from pgsched.runs r
        where r.entrypoint = new.entrypoint and r.unique_key = new.unique_key and r.status = 'running'
            and r.unique_while = 'waiting' and coalesce(r.app, '') = coalesce(new.app, '')
        for key share;
        return new;
    end if;
    -- Once more after the insert, for a run that was claimed while the unique index kept this one waiting. From here on
    -- a worker may wait for us, so that we wait for nobody.
    perform 1 from pgsched.runs r
    where r.entrypoint = new.entrypoint and r.unique_key = new.unique_key and r.status = 'running'
        and r.unique_while = 'waiting' and coalesce(r.app, '') = coalesce(new.app, '')
    for key share skip locked;
    return null;
end $$;
comment on function pgsched.run_waits() is
    'A run is queued with a key that holds while it waits: running runs with the key go back to the queue only once this transaction is over.';
revoke execute on function pgsched.run_waits() from public;

create function pgsched.waiting_instead(run_id bigint, batch bigint[]) returns bigint
    language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp as $$
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
    return coalesce(other, 0);
end $$;
comment on function pgsched.waiting_instead(bigint, bigint[]) is
    'For a run whose key only one waiting run may have, and that would go back to the queue: the other run that waits, an earlier one of the batch included; 0 for none, null if that is not certain yet.';

create trigger run_queued before insert on pgsched.runs
    for each row when (new.status = 'queued' and (new.schedule_id is null or new.origin is not null))
    execute function pgsched.run_queued();
create trigger run_waits before insert on pgsched.runs
    for each row when (new.status = 'queued' and new.unique_key is not null and new.unique_while = 'waiting')
    execute function pgsched.run_waits();
create trigger run_waited after insert on pgsched.runs
    for each row when (new.status = 'queued' and new.unique_key is not null and new.unique_while = 'waiting')
    execute function pgsched.run_waits();

-- --- the interface -----------------------------------------------------------------------------------------

drop function pgsched.check_job(text, timestamptz, int);
create function pgsched.check_job(
    entrypoint text, due_at timestamptz, priority int, app text default null, unique_while text default null
) returns void
    language plpgsql stable security invoker set search_path = pg_catalog, pg_temp as $$
begin
    if entrypoint is null or entrypoint ~ '[[:cntrl:]]' or length(entrypoint) not between 1 and 200 then
        raise exception 'entrypoint is a text of 1 to 200 characters without control characters, not %.',
            coalesce(to_jsonb(left(entrypoint, 60))::text, 'null') using errcode = 'PS422';
    elsif due_at < '1900-01-01 00:00:00+00' or due_at >= '2200-01-01 00:00:00+00' then
        raise exception 'due_at is an instant of the years 1900 to 2199, not %.', due_at using errcode = 'PS422';
    elsif priority not between -100 and 100 then
        raise exception 'priority is a whole number from -100 to 100, not %.', priority using errcode = 'PS422';
    elsif app ~ '[[:cntrl:]]' or length(app) not between 1 and 200 then
        raise exception 'app is a text of 1 to 200 characters without control characters, or null, not %.',
            to_jsonb(left(app, 60)) using errcode = 'PS422';
    elsif unique_while not in ('live', 'waiting') then
        raise exception 'unique_while is live or waiting, not %.', to_jsonb(left(unique_while, 60))
            using errcode = 'PS422';
    end if;
end $$;
comment on function pgsched.check_job(text, timestamptz, int, text, text) is 'Refuses what no job may be.';

create function pgsched.enqueue_unique(
    entrypoint text, args jsonb default '{}', due_at timestamptz default null, priority int default 0,
    unique_key text default null, app text default null, unique_while text default 'live'
) returns table (run_id bigint, queued boolean)
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    perform pgsched.check_job(entrypoint, due_at, priority, app, unique_while);
    if jsonb_typeof(args) <> 'object' then
        raise exception 'args is a JSON object whose keys are parameter names, not a JSON %.', jsonb_typeof(args)
            using errcode = 'PS422';
    elsif length(unique_key) > 500 then
        raise exception 'unique_key is a text of at most 500 characters, not of %.', length(unique_key)
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
comment on function pgsched.enqueue_unique(text, jsonb, timestamptz, int, text, text, text) is
    'Queues one run of an entrypoint as enqueue() does, and says whether it did: returns the run''s id, and false if that run had the unique_key already. PS409 if nothing can be queued, PS422 for what it refuses.';

create function pgsched.not_queued() returns void
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
begin
    raise exception 'Nothing was queued, and no run with the unique key can be seen. Look for a trigger, a policy of row level security or a unique index of your own on the table runs.'
        using errcode = 'PS409';
end $$;
comment on function pgsched.not_queued() is 'Refuses to try for ever.';

drop function pgsched.enqueue(text, jsonb, timestamptz, int, text);
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
    'Queues one run of an entrypoint and returns its id. app: only workers of that application run it; null: any that has the entrypoint. With a unique_key that a live run has (unique_while waiting: a queued one), returns that run''s id. PS409 if nothing can be queued, PS422 for what it refuses.';

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
        raise exception 'unique_keys are as many as there are args, %, not %.', count_, cardinality(unique_keys)
            using errcode = 'PS422';
    end if;
    select min(w.place) into wrong
    from unnest(enqueue_many_unique.args) with ordinality as w (args, place) where jsonb_typeof(w.args) <> 'object';
    if wrong is not null then
        raise exception 'args number % is not a JSON object whose keys are parameter names.', wrong
            using errcode = 'PS422';
    end if;
    select min(w.place) into wrong
    from unnest(unique_keys) with ordinality as w (key, place) where length(w.key) > 500;
    if wrong is not null then
        raise exception 'unique_key number % has more than 500 characters.', wrong using errcode = 'PS422';
    end if;

    for turn in 1..10 loop
        with added as (
            insert into pgsched.runs (entrypoint, args, due_at, priority, unique_key, unique_while, app)
            select enqueue_many_unique.entrypoint, coalesce(w.args, '{}'),
                -- They run in the order of the batch, whatever the order of their ids.
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
    'Queues runs of an entrypoint as enqueue_many() does, and says of each place whether it did: returns the run''s id, and false if that run had the unique_key already. PS409 if nothing can be queued, PS422 for what it refuses.';

drop function pgsched.enqueue_many(text, jsonb[], timestamptz, int, text[]);
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
    'Queues one run of an entrypoint for each of the arguments, all or none, and returns their ids, in order. unique_keys: one for each, or null. If a live run has it (unique_while waiting: a queued one), an earlier one of the batch included, nothing is queued for that place. PS409 if nothing can be queued, PS422 for what it refuses.';

create or replace function pgsched.retry(run_id bigint) returns void
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
declare
    state text;
begin
    select r.status into state from pgsched.runs r where r.id = run_id for update;
    if state is null then
        perform pgsched.no_run(run_id);
    elsif state not in ('failed', 'cancelled') then
        raise exception 'Run % is %: only a failed or cancelled one can be retried.', run_id, state
            using errcode = 'PS409';
    end if;
    update pgsched.runs r
    set status = 'queued', due_at = clock_timestamp(),
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

-- --- what only pgsched writes ------------------------------------------------------------------------------

-- No row that a worker could not read again, or that nobody would ever reap.
update pgsched.runs set attempt = least(greatest(attempt, 0), 1000000) where attempt not between 0 and 1000000;
update pgsched.runs set errors = '[]' where jsonb_typeof(errors) <> 'array';
update pgsched.runs set status = 'queued', worker = null
where status = 'running' and (worker is null or heartbeat_at is null or claimed_at is null);
update pgsched.runs set schedule_id = null, fire_time = null where (schedule_id is null) <> (fire_time is null);
alter table pgsched.runs
    add constraint runs_attempt_check check (attempt between 0 and 1000000),
    add constraint runs_errors_check check (jsonb_typeof(errors) = 'array'),
    add constraint runs_claim_check check (
        status <> 'running' or (worker is not null and heartbeat_at is not null and claimed_at is not null)),
    add constraint runs_fire_time_check check ((schedule_id is null) = (fire_time is null));
