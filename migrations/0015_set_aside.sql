-- Rows that the server refuses to change wait here with the reason, so that they stop nobody else's work.

create table pgsched.set_aside (
    kind        text not null check (kind in ('run', 'schedule', 'end', 'beat', 'reap')),
    id          bigint not null,
    row_version text not null,
    reason      text not null,
    since       timestamptz not null default now(),
    until       timestamptz not null,
    primary key (kind, id)
);
comment on table pgsched.set_aside is
    'Rows that the server refused to change, each with the reason. Only workers write here; health reports the rows.';
comment on column pgsched.set_aside.kind is
    'What was refused: the claim of a run, the plan of a schedule, the end, the beat or the reaping of a run.';
comment on column pgsched.set_aside.id is 'The id of the schedule or run.';
comment on column pgsched.set_aside.row_version is
    'The xmin of the row that was refused. A row with another one has changed and is tried again.';
comment on column pgsched.set_aside.reason is 'The server''s message, without row data.';
comment on column pgsched.set_aside.since is 'When the row was first refused.';
comment on column pgsched.set_aside.until is 'When the row is tried again, changed or not.';

-- An end or a beat is refused while other writes of the same run succeed, so its row may have changed meanwhile.
create view pgsched.resting as
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
    where a.kind = 'schedule' and s.status in ('active', 'paused') and s.xmin::text = a.row_version;
comment on view pgsched.resting is
    'The rows of set_aside that are as they were when the server refused them. Until `until` no worker tries them.';
