-- Every look at a schedule's overlap counts alike: running runs, and threads that outlive their runs.

create view pgsched.executing as
    select r.schedule_id, r.id as run_id from pgsched.runs r where r.status = 'running'
    union all
    select b.schedule_id, b.run_id from pgsched.left_behind b where b.counts_until > now();
comment on view pgsched.executing is
    'The runs whose functions count for the overlap of their schedules: running ones, and those that have ended while their threads go on.';
create index left_behind_schedule on pgsched.left_behind (schedule_id);

create or replace function pgsched.overlap_room(schedule_id bigint) returns int
    language sql stable set search_path = pg_catalog, pg_temp as $$
    select case when s.overlap ~ '^[0-9]+$' then s.overlap::int else 1 end
        - (select count(*) from pgsched.executing e where e.schedule_id = s.id)::int
    from pgsched.schedules s
    where s.id = overlap_room.schedule_id and s.overlap <> 'allow'
$$;
