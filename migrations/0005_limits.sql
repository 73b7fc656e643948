-- Limits on how many runs of an entrypoint are running at once, and on how many start in a period, whatever workers,
-- clients and schedules there are.

create table pgsched.limits (
    entrypoint      text primary key check (entrypoint ~ '^[^[:cntrl:]]{1,200}$'),
    owner           text not null,
    concurrency     int check (concurrency >= 1),
    concurrency_key text[] check (cardinality(concurrency_key) between 1 and 8),
    per_key         int check (per_key >= 1),
    starts          int check (starts >= 1),
    period          pgsched.duration check (period > interval '0'),
    limited         boolean not null generated always as
                    (concurrency is not null or per_key is not null or starts is not null) stored,
    started_at      timestamptz[] not null default '{}',
    started         int[] not null default '{}',
    updated_at      timestamptz not null default clock_timestamp(),
    check ((concurrency_key is null) = (per_key is null)),
    check ((starts is null) = (period is null))
) with (fillfactor = 50);

comment on table pgsched.limits is
    'One row an entrypoint that has limits, or had some. Written by workers at their start, from the code; locked by the claim, which counts under that lock.';
comment on column pgsched.limits.owner is 'code: and the name of the application that declared it last.';
comment on column pgsched.limits.concurrency is 'At most so many runs of the entrypoint are running, on all workers together.';
comment on column pgsched.limits.concurrency_key is
    'The names of arguments; runs that agree in them share a key, of which at most per_key are running.';
comment on column pgsched.limits.starts is 'At most so many runs are claimed in any period.';
comment on column pgsched.limits.limited is 'Whether any limit is set.';
comment on column pgsched.limits.started_at is
    'When runs were claimed within the last period, oldest first; with a count each in started. Written by the claim.';

alter table pgsched.runs add column line text;
comment on column pgsched.runs.line is
    'Where it queues at an entrypoint that has limits: behind others of its key (k and the key), or of its schedule (s and the id). Null: the entrypoint has none. Only a way to find it: keys are read from args when they are counted.';
comment on column pgsched.runs.gated is
    'Claimed only under a lock: its schedule''s, while fewer runs of it are running than its overlap allows, or its entrypoint''s limits.';

-- One walk over lines and priorities finds the first of each, however many wait behind it.
create index runs_lines on pgsched.runs (entrypoint, line, (-priority), due_at, id)
    where status = 'queued' and gated and line is not null;

create index runs_urgent on pgsched.runs (entrypoint, (-priority), due_at, id)
    where status = 'queued' and gated and line is not null;

create function pgsched.key_of(args jsonb, names text[]) returns text
    language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
    select case when length(k.key) > 200 then md5(k.key) else k.key end
    from (
        select coalesce(string_agg(coalesce(key_of.args ->> n.name, ''), E'\x1f' order by n.place), '') as key
        from unnest(key_of.names) with ordinality as n (name, place)
    ) k
$$;
comment on function pgsched.key_of(jsonb, text[]) is 'The value of a run''s concurrency key: the named arguments, as text.';

-- For the inserts: null where the entrypoint has no limits.
create function pgsched.line_for(entrypoint text, args jsonb, schedule_id bigint, overlap text) returns text
    language sql stable set search_path = pg_catalog, pg_temp as $$
    select case when coalesce(line_for.overlap, 'allow') <> 'allow' then 's' || line_for.schedule_id
           else 'k' || pgsched.key_of(line_for.args, l.concurrency_key) end
    from pgsched.limits l
    where l.entrypoint = line_for.entrypoint and l.limited
$$;
comment on function pgsched.line_for(text, jsonb, bigint, text) is
    'The line in which a run queues, where its entrypoint has limits; null where it has none. overlap: its schedule''s.';

create function pgsched.has_room(schedule_id bigint) returns boolean
    language sql stable set search_path = pg_catalog, pg_temp as $$
    select coalesce((
        select s.overlap = 'allow' or (
            select count(*) from pgsched.runs r where r.status = 'running' and r.schedule_id = s.id
        ) < case when s.overlap ~ '^[0-9]+$' then s.overlap::int else 1 end
        from pgsched.schedules s where s.id = has_room.schedule_id
    ), true)
$$;
comment on function pgsched.has_room(bigint) is
    'Whether the overlap of a schedule lets one more of its runs run; of one that is gone, nothing is in the way.';

create or replace function pgsched.trigger(name text) returns bigint
    language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    made bigint;
    now_ timestamptz := clock_timestamp();
begin
    insert into pgsched.runs (schedule_id, entrypoint, args, fire_time, previous_fire_time, due_at, priority,
                              max_attempts, backoff, max_backoff, timeout, origin, gated, line)
    select s.id, s.entrypoint, s.args, now_, s.last_run, now_, s.priority,
           s.max_attempts, s.backoff, s.max_backoff, s.timeout, 'trigger', s.overlap <> 'allow' or l.line is not null,
           l.line
    from pgsched.schedules s
    cross join lateral (select pgsched.line_for(s.entrypoint, s.args, s.id, s.overlap) as line) l
    where s.name = trigger.name
    returning id into made;
    if made is null then
        raise exception 'there is no schedule "%"', name using errcode = 'PS404';
    end if;
    return made;
end $$;

create or replace function pgsched.enqueue(
    entrypoint text, args jsonb default '{}', due_at timestamptz default null,
    priority int default 0, unique_key text default null
) returns bigint
    language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    made bigint;
    line_ text := pgsched.line_for(enqueue.entrypoint, enqueue.args, null, null);
begin
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
        gated = g.overlap <> 'allow' or g.line is not null, line = g.line
    from (
        select q.overlap, pgsched.line_for(r.entrypoint, r.args, r.schedule_id, q.overlap) as line
        from pgsched.runs r
        cross join lateral (
            select coalesce((select s.overlap from pgsched.schedules s where s.id = r.schedule_id), 'allow') as overlap
        ) q
        where r.id = run_id
    ) g
    where r.id = run_id;
end $$;
