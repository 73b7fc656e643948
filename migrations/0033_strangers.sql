-- Functions of triggers are the triggers' alone: a role that may make a table could hang them on that, and have them change
-- runs of any schedule. A cancellation waits for no enqueue, and a change of a schedule costs no fire time that has come.

revoke execute on function pgsched.run_queued() from public;
revoke execute on function pgsched.run_queued_again() from public;
revoke execute on function pgsched.run_waits() from public;
revoke execute on function pgsched.schedule_changed() from public;
revoke execute on function pgsched.schedule_followed() from public;
revoke execute on function pgsched.schedule_moved() from public;
revoke execute on function pgsched.schedule_removed() from public;
revoke execute on function pgsched.schedules_truncated() from public;
revoke execute on function pgsched.wake_workers() from public;
revoke execute on function pgsched.worker_forgotten() from public;

create or replace function pgsched.cancel(run_id bigint) returns text
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
declare
    state text;
begin
    -- The row is locked first: between a look and a write it could be claimed, or end. Not so that an enqueue with its
    -- key, in a transaction that stays open, keeps us waiting.
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
    with gone as (
        delete from pgsched.runs r
        where r.id = any (array(
                select q.id from pgsched.runs q
                where q.schedule_id = new.id and q.status = 'queued' and q.origin is null and q.attempt = 0
                    and q.started_at is null and q.stops is null and q.errors = '[]' and q.due_at > clock_timestamp()
                    -- One that has come, and that jitter alone puts off, is not judged anew by its lateness.
                    and (q.fire_time > clock_timestamp() or not (new.status = 'active'
                        or new.status = 'finished' and new.retired_at is null and not new.closed))
                    and (not retimed or q.fire_time > new.timed_at)))
            and r.status = 'queued' and r.attempt = 0
        returning r.fire_time, r.previous_fire_time
    )
    select count(*), min(fire_time), (array_agg(previous_fire_time order by fire_time))[1]
    into dropped, first, before_first from gone;
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

comment on column pgsched.runs.withdrawn_at is
    'When its fire time was given back, because its schedule had changed: by a reaper, since its holder was dead (whether its function was called is not known), or by a holder that was refused to delete it (it was not called).';
