-- Jobs that have no schedule pay no longer for the index that keeps fire times apart: three entries a run, a seventh of
-- what it writes.
drop index pgsched.runs_one_per_fire_time;
create unique index runs_one_per_fire_time on pgsched.runs (schedule_id, fire_time, again)
    where status <> 'skipped' and schedule_id is not null;
comment on index pgsched.runs_one_per_fire_time is 'No fire time has two runs, whatever workers, clocks and retries do.';

-- Names that index as it is now.
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
