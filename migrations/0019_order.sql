-- The order in which a claim goes through what is due: by priority, then by due time.

drop index pgsched.schedules_due;
create index schedules_due on pgsched.schedules (priority desc, (coalesce(next_run, '-infinity'::timestamptz)), id)
    where status = 'active';
comment on index pgsched.schedules_due is
    'What a claim plans next, of each priority: first what was never planned, then by due time.';

create function pgsched.overlap_room(schedule_id bigint) returns int
    language sql stable set search_path = pg_catalog, pg_temp as $$
    select case when s.overlap ~ '^[0-9]+$' then s.overlap::int else 1 end
        - (select count(*) from pgsched.runs r where r.status = 'running' and r.schedule_id = s.id)::int
    from pgsched.schedules s
    where s.id = overlap_room.schedule_id and s.overlap <> 'allow'
$$;
comment on function pgsched.overlap_room(bigint) is
    'How many more of its runs the overlap of a schedule lets run; null if it allows any number, or is gone.';

drop function pgsched.has_room(bigint);
