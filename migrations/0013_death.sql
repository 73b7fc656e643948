-- How the death of a worker is known, and what must not look like it.

alter table pgsched.workers
    add column machine text not null default '',
    add column process_started text not null default '',
    add column route text not null default '',
    add column passed_at timestamptz;
comment on column pgsched.workers.machine is
    'The kernel that its process runs under, since its start, and the name space of its pid: a worker of the same machine can look whether the process is still there. Empty: not known.';
comment on column pgsched.workers.process_started is
    'When its process started, as the machine''s kernel counts, so that another process with its pid is not taken for it. Empty: not known.';
comment on column pgsched.workers.route is
    'How it reaches the server: its own address, the target, and the address that the server sees. Empty: not known.';
comment on column pgsched.workers.passed_at is
    'When a beat of it last passed over a run that somebody else had locked. It counts as a sign of life of all of its claims.';
