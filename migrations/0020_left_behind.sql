-- Threads that outlive their runs. A run ends, but its function may go on in its thread, and must count as running.

create table pgsched.left_behind (
    run_id       bigint not null,
    token        bigint not null,
    worker       uuid not null,
    schedule_id  bigint,
    app          text,
    entrypoint   text not null,
    args         jsonb not null,
    since        timestamptz not null default clock_timestamp(),
    counts_until timestamptz not null,
    primary key (run_id, token)
);
comment on table pgsched.left_behind is
    'One row for each attempt that has ended while its function goes on in a thread. It counts for overlap and limits. Written by its worker, with the end.';
comment on column pgsched.left_behind.counts_until is
    'Its worker puts this off as long as the thread goes on; of a worker that died it passes.';
comment on column pgsched.left_behind.app is 'Whose limits it counts at. Null: those of its worker''s application.';

create or replace view pgsched.running_at_limits as
    select m.gate, r.id, r.args
    from pgsched.runs r
    join pgsched.limit_members m on m.entrypoint = r.entrypoint
    left join pgsched.workers w on w.id = r.worker
    where r.status = 'running' and coalesce(r.limited_by, r.app, w.app, m.app) = m.app
    union all
    select m.gate, b.run_id, b.args
    from pgsched.left_behind b
    join pgsched.limit_members m on m.entrypoint = b.entrypoint
    left join pgsched.workers w on w.id = b.worker
    where b.counts_until > now() and coalesce(b.app, w.app, m.app) = m.app;
comment on view pgsched.running_at_limits is
    'The running runs that each limit counts, and those that have ended while their threads go on.';
