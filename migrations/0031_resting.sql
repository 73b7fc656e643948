-- A claim pays at every start for each step of its plan, also for those that never find anything. Here each kind of rows
-- has a part of its own in the view, and the planner leaves out those that nobody asked for.

create or replace view pgsched.resting as
    select a.kind, a.id, a.reason, a.since, a.until
    from pgsched.set_aside a join pgsched.runs r on r.id = a.id
    where a.kind = 'run' and r.status = 'queued' and r.xmin::text = a.row_version
    union all
    select a.kind, a.id, a.reason, a.since, a.until
    from pgsched.set_aside a join pgsched.runs r on r.id = a.id
    where a.kind = 'reap' and r.status = 'running' and r.xmin::text = a.row_version
    union all
    select a.kind, a.id, a.reason, a.since, a.until
    from pgsched.set_aside a join pgsched.runs r on r.id = a.id
    where a.kind = 'end' and r.status = 'running'
    union all
    select a.kind, a.id, a.reason, a.since, a.until
    from pgsched.set_aside a join pgsched.runs r on r.id = a.id
    where a.kind = 'beat' and r.status = 'running' and r.heartbeat_at <= a.since
    union all
    select a.kind, a.id, a.reason, a.since, a.until
    from pgsched.set_aside a join pgsched.schedules s on s.id = a.id
    where a.kind = 'schedule' and s.status in ('active', 'paused') and s.xmin::text = a.row_version
    union all
    select a.kind, a.id, a.reason, a.since, a.until
    from pgsched.set_aside a join pgsched.schedules s on s.id = a.id
    where a.kind = 'replan' and s.status in ('active', 'paused') and s.xmin::text = a.row_version
    union all
    select a.kind, a.id, a.reason, a.since, a.until
    from pgsched.set_aside a join pgsched.limits l on l.id = a.id
    where a.kind = 'limits' and l.xmin::text = a.row_version;

create or replace view pgsched.unclaimable as
    select a.id from pgsched.resting a where a.kind = 'run' and a.until > now()
    union all
    select b.run_id from pgsched.left_behind b where b.counts_until > now();

create index schedules_next on pgsched.schedules ((coalesce(next_run, '-infinity'::timestamptz)))
    where status = 'active';
comment on index pgsched.schedules_next is 'Whether anything is due, and when the next will be, whatever its priority.';
