-- Threads that outlive their runs count in every look. More kinds of rows are set aside if the server refuses them.

create view pgsched.executing as
    select r.schedule_id, r.id as run_id from pgsched.runs r where r.status = 'running'
    union all
    select b.schedule_id, b.run_id from pgsched.left_behind b where b.counts_until > now();
comment on view pgsched.executing is
    'The runs whose functions count for the overlap of their schedules: running ones, and those that have ended or lost their claim while their threads go on.';

create or replace function pgsched.overlap_room(schedule_id bigint) returns int
    language sql stable set search_path = pg_catalog, pg_temp as $$
    select case when s.overlap ~ '^[0-9]+$' then s.overlap::int else 1 end
        - (select count(*) from pgsched.executing e where e.schedule_id = s.id)::int
    from pgsched.schedules s
    where s.id = overlap_room.schedule_id and s.overlap <> 'allow'
$$;

-- A run never executes beside itself: retried, or taken away from a worker that was alive after all, it waits.
create view pgsched.unclaimable as
    select a.id from pgsched.resting a where a.kind = 'run' and a.until > now()
    union all
    select b.run_id from pgsched.left_behind b where b.counts_until > now();
comment on view pgsched.unclaimable is
    'The runs that no worker claims now: the server refused their claim, or an earlier attempt goes on in a thread.';
comment on table pgsched.left_behind is
    'One row for each attempt that has ended, or lost its claim, while its function goes on in a thread. It counts for overlap and limits, and its run is not claimed meanwhile. Written by its worker.';
comment on function pgsched.retry(bigint) is
    'Queues a failed or cancelled run again, with at least one more attempt; its errors stay. If an earlier attempt goes on in a thread, it waits until that has ended or its worker is gone. PS404, PS409 where it has neither failed nor been cancelled, or where a live run has its unique_key.';

-- --- rows that the server refuses --------------------------------------------------------------------------

alter table pgsched.limits add column id bigint generated always as identity;
comment on column pgsched.limits.id is 'Under which it is set aside if the server refuses to change it.';

alter table pgsched.set_aside drop constraint set_aside_kind_check,
    add constraint set_aside_kind_check check (kind in ('run', 'schedule', 'replan', 'limits', 'end', 'beat', 'reap'));
comment on column pgsched.set_aside.kind is
    'What was refused: the claim of a run, the plan of a schedule, its new plan by new time zone rules, the note of starts at limits, the end, the beat or the reaping of a run.';
comment on column pgsched.set_aside.id is 'The id of the schedule, the limits or the run.';

create or replace view pgsched.resting as
    select a.kind, a.id, a.reason, a.since, a.until
    from pgsched.set_aside a
    join pgsched.runs r on r.id = a.id
    where a.kind = 'run' and r.status = 'queued' and r.xmin::text = a.row_version
        or a.kind = 'reap' and r.status = 'running' and r.xmin::text = a.row_version
        or a.kind = 'end' and r.status = 'running'
        or a.kind = 'beat' and r.status = 'running' and r.heartbeat_at <= a.since
    union all
    select a.kind, a.id, a.reason, a.since, a.until
    from pgsched.set_aside a
    join pgsched.schedules s on s.id = a.id
    where a.kind in ('schedule', 'replan') and s.status in ('active', 'paused') and s.xmin::text = a.row_version
    union all
    select a.kind, a.id, a.reason, a.since, a.until
    from pgsched.set_aside a
    join pgsched.limits l on l.id = a.id
    where a.kind = 'limits' and l.xmin::text = a.row_version;
