-- A thread that outlives its run counts for the overlap of its schedule, for what stands in line too.

create or replace function pgsched.overlap_room(schedule_id bigint) returns int
    language sql stable set search_path = pg_catalog, pg_temp as $$
    select case when s.overlap ~ '^[0-9]+$' then s.overlap::int else 1 end
        - (select count(*) from pgsched.runs r where r.status = 'running' and r.schedule_id = s.id)::int
        - (select count(*) from pgsched.left_behind b where b.schedule_id = s.id and b.counts_until > now())::int
    from pgsched.schedules s
    where s.id = overlap_room.schedule_id and s.overlap <> 'allow'
$$;
