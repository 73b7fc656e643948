-- A pause must not read history.

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
        -- Its last fire time is claimed, and still to come. That one is found in the index of fire times; a look for any
        -- run that is live would read the whole table.
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
