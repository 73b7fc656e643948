-- Tables, their indexes, and the views over them.
-- Written for the schema name pgsched; `pgsched migrate` puts the configured name in its place.
-- A released migration is never edited: each later change of the schema is a new file.

-- --- types -----------------------------------------------------------------------------------------------

create domain pgsched.instant as timestamptz
    check (value >= '1900-01-01 00:00:00+00' and value < '2200-01-01 00:00:00+00');
comment on domain pgsched.instant is
    'A point in time that every client language can hold: no infinity, no year 294276.';

create domain pgsched.duration as interval
    check (value >= interval '0' and value <= interval '36500 days');
comment on domain pgsched.duration is 'A length of time, not negative, at most a hundred years.';

-- --- schedules -------------------------------------------------------------------------------------------

-- A bound in a regular expression takes PostgreSQL 5 µs, and each update checks the whole row. So names are checked for
-- control characters and for their length separately, which takes 0.2 µs.
create table pgsched.schedules (
    id                bigint generated always as identity primary key,
    name              text not null unique check (name !~ '[[:cntrl:]]' and length(name) between 1 and 200),
    app               text check (app !~ '[[:cntrl:]]' and length(app) between 1 and 200),
    owner             text not null default 'api',
    entrypoint        text not null check (entrypoint !~ '[[:cntrl:]]' and length(entrypoint) between 1 and 200),
    args              jsonb not null default '{}' check (jsonb_typeof(args) = 'object'),
    -- when it fires
    expression        text not null check (length(expression) <= 1000),
    timezone          text not null default 'UTC' check (length(timezone) <= 200),
    starts_at         pgsched.instant,
    ends_at           pgsched.instant,
    max_runs          int check (max_runs >= 1),
    -- how its runs run
    overlap           text not null default 'skip'
                      check (overlap in ('skip', 'queue', 'allow', 'cancel') or overlap ~ '^[1-9][0-9]{0,5}$'),
    catch_up          text not null default 'latest' check (catch_up in ('latest', 'all', 'none')),
    catch_up_limit    int not null default 1000 check (catch_up_limit >= 1),
    grace             pgsched.duration,
    jitter            pgsched.duration not null default '0',
    timeout           pgsched.duration check (timeout > interval '0'),
    max_attempts      int check (max_attempts between 1 and 1000),
    backoff           pgsched.duration,
    max_backoff       pgsched.duration,
    priority          smallint not null default 0 check (priority between -100 and 100),
    -- its state
    status            text not null default 'active' check (status in ('active', 'paused', 'finished', 'invalid')),
    note              text,
    paused_at         pgsched.instant,
    paused_until      pgsched.instant,
    resumed_at        pgsched.instant,
    backlog           boolean not null default false,
    retired_at        pgsched.instant,
    paused_note       text,
    closed            boolean not null default false,
    -- its plan, written by workers
    next_run          pgsched.instant,
    last_run          pgsched.instant,
    last_status       text,
    run_count         bigint not null default 0,
    planned_at        timestamptz,
    accounted_through pgsched.instant,
    interruptions     jsonb not null default '[]',
    zone_rules        text,
    next_wall         timestamp,
    accounted_wall    timestamp,
    moved_from        pgsched.instant,
    -- its changes, counted by the trigger
    version           bigint not null default 1,
    timed_version     bigint not null default 1,
    timed_at          pgsched.instant not null default clock_timestamp(),
    created_at        pgsched.instant not null default clock_timestamp(),
    updated_at        pgsched.instant not null default clock_timestamp(),
    constraint schedules_planned_check check (planned_at between '1900-01-01Z' and '2200-01-01Z'),
    constraint schedules_walls_check check (
        next_wall between '1900-01-01' and '2200-01-01' and accounted_wall between '1900-01-01' and '2200-01-01')
) with (fillfactor = 80);

-- A row without next_run waits for its first plan, so it sorts before all others.
create index schedules_due on pgsched.schedules (priority desc, (coalesce(next_run, '-infinity'::timestamptz)), id)
    where status = 'active';
create index schedules_next on pgsched.schedules ((coalesce(next_run, '-infinity'::timestamptz)))
    where status = 'active';
create index schedules_paused_until on pgsched.schedules (paused_until)
    where status = 'paused' and paused_until is not null;

comment on index pgsched.schedules_due is
    'For the claim: the schedules of each priority, first those never planned, then by due time.';
comment on index pgsched.schedules_next is 'For the look ahead: whether anything is due, and when the next fire time comes.';

comment on table pgsched.schedules is
    'Stored definitions: which entrypoint runs, and when. Any client may write here; workers plan next_run.';
comment on column pgsched.schedules.app is
    'The application whose workers run it. Null: any worker that has the entrypoint.';
comment on column pgsched.schedules.owner is 'api, or code: and the name of the application that declares it.';
comment on column pgsched.schedules.entrypoint is 'The name of the function, as a factory registered it.';
comment on column pgsched.schedules.expression is
    'A cron expression, @every 30s, @at 2027-01-01T00:00:00Z, or a macro such as @daily.';
comment on column pgsched.schedules.timezone is 'The IANA zone on whose wall clock the expression is read.';
comment on column pgsched.schedules.overlap is
    'The policy for a fire time that arrives while an earlier run is live: skip, queue (at most one waits), allow, cancel (the live one), or at most N at once.';
comment on column pgsched.schedules.catch_up is 'Which of several missed fire times run: latest, all, none.';
comment on column pgsched.schedules.catch_up_limit is
    'With catch_up all: how many missed fire times run at most, the newest ones. Older ones are recorded as missed.';
comment on column pgsched.schedules.grace is 'A fire time older than this is missed under every catch_up.';
comment on column pgsched.schedules.jitter is 'The longest delay between a fire time and its start.';
comment on column pgsched.schedules.max_attempts is 'Null: the entrypoint''s.';
comment on column pgsched.schedules.backoff is
    'The wait before the second attempt; it doubles from there. Null: the entrypoint''s.';
comment on column pgsched.schedules.status is
    'active; paused; finished: nothing more will fire; invalid: could not be planned, note says why.';
comment on column pgsched.schedules.note is 'Why it is paused, finished or invalid.';
comment on column pgsched.schedules.paused_until is 'When a paused schedule resumes by itself.';
comment on column pgsched.schedules.backlog is
    'If paused: after the resume, fire times in the pause count as missed and catch_up applies. False: they are skipped.';
comment on column pgsched.schedules.retired_at is 'When the application that declared it stopped declaring it.';
comment on column pgsched.schedules.paused_note is
    'The note of its pause, kept while it is retired: a paused schedule comes back paused.';
comment on column pgsched.schedules.closed is
    'A client set it to finished. False on a finished one: a plan did, after its last fire time.';
comment on column pgsched.schedules.next_run is
    'The next fire time. Null on an active schedule: a worker will plan it. It only grows, unless a client changes it.';
comment on column pgsched.schedules.last_run is 'The newest fire time that became a run.';
comment on column pgsched.schedules.last_status is
    'How the newest ended run ended. Written in passing; the truth is in runs.';
comment on column pgsched.schedules.run_count is 'Runs made so far, for max_runs.';
comment on column pgsched.schedules.planned_at is
    'When a worker last wrote here. Each write of a worker makes it grow; a write that does not is a client''s.';
comment on column pgsched.schedules.accounted_through is
    'Every fire time up to here is a run or a recorded skip. Null: none is yet; they count from timed_at on.';
comment on column pgsched.schedules.interruptions is
    'Ended pauses, replaced timings and times of retirement, oldest first. The trigger writes them if fire times may lie in them; the next plan settles and empties them.';
comment on column pgsched.schedules.zone_rules is
    'The rules that next_run was planned by, or must be planned by if it is null: the tzdata release, a colon, and the digest as in zones. Null for UTC. A worker whose rules differ and are not newer leaves the schedule alone.';
comment on column pgsched.schedules.next_wall is 'The time on the zone''s clock at next_run, by zone_rules.';
comment on column pgsched.schedules.accounted_wall is
    'The time on the zone''s clock at accounted_through, by the rules of that plan. Listed times up to here have had their turn, also under later rules.';
comment on column pgsched.schedules.moved_from is
    'The next_run of the rules before. Set when newer rules are noticed, until the next plan.';
comment on column pgsched.schedules.version is 'Grows with each change by a client.';
comment on column pgsched.schedules.timed_version is
    'The version of the last change of its timing: expression, zone, bounds, max_runs, or next_run by a client.';
comment on column pgsched.schedules.timed_at is 'When the expression, zone and bounds last changed.';

-- A claim of a fire time that was made before a client removed the schedule may begin after it. A new schedule of that
-- name must not run that fire time again.
create table pgsched.removed (
    schedule_id       bigint primary key,
    name              text not null,
    accounted_through pgsched.instant not null,
    removed_at        timestamptz not null default clock_timestamp()
);
create index removed_name on pgsched.removed (name);

comment on table pgsched.removed is
    'One row for each removed schedule with fire times that were claimed ahead. A new schedule of its name starts after these. Kept for a day.';
comment on column pgsched.removed.schedule_id is 'The id that it had.';
comment on column pgsched.removed.name is 'The name that it had.';
comment on column pgsched.removed.accounted_through is
    'Fire times up to here were claimed. A holder that drops its claim sets it back.';
comment on column pgsched.removed.removed_at is 'When it was removed.';

-- --- runs ------------------------------------------------------------------------------------------------

create table pgsched.runs (
    id                  bigint generated always as identity primary key,
    schedule_id         bigint,
    app                 text check (app !~ '[[:cntrl:]]' and length(app) between 1 and 200),
    entrypoint          text not null check (entrypoint !~ '[[:cntrl:]]' and length(entrypoint) between 1 and 200),
    args                jsonb not null default '{}' check (jsonb_typeof(args) = 'object'),
    origin              text check (origin in ('trigger', 'backfill')),
    fire_time           pgsched.instant,
    previous_fire_time  pgsched.instant,
    again               int not null default 0 check (again >= 0),
    due_at              pgsched.instant not null default clock_timestamp(),
    priority            smallint not null default 0 check (priority between -100 and 100),
    timeout             pgsched.duration check (timeout > interval '0'),
    max_attempts        int check (max_attempts >= 1),
    backoff             pgsched.duration,
    max_backoff         pgsched.duration,
    unique_key          text check (length(unique_key) <= 500),
    unique_while        text not null default 'live' check (unique_while in ('live', 'waiting')),
    created_at          timestamptz not null default clock_timestamp(),
    -- its state
    status              text not null default 'queued'
                        check (status in ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'skipped')),
    reason              text,
    detail              text,
    skipped_count       bigint check (skipped_count >= 1),
    skipped_through     pgsched.instant,
    -- the locks that its claim needs
    gated               boolean not null default false,
    limited_by          text,
    line                text,
    -- its claim
    attempt             int not null default 0 check (attempt between 0 and 1000000),
    token               bigint not null default 0,
    worker              uuid,
    schedule_version    bigint,
    claimed_at          pgsched.instant,
    heartbeat_at        pgsched.instant,
    started_at          pgsched.instant,
    cancel_requested_at pgsched.instant,
    withdrawn_at        pgsched.instant,
    -- its progress and its end
    progress_done       float8,
    progress_total      float8,
    progressed_at       timestamptz,
    committed_at        timestamptz,
    reported_at         timestamptz,
    finished_at         pgsched.instant,
    result              jsonb,
    errors              jsonb not null default '[]' check (jsonb_typeof(errors) = 'array'),
    stops               jsonb check (jsonb_typeof(stops) = 'array'),
    -- No row that a worker could not read again, or that nobody would ever reap.
    constraint runs_fire_time_check check ((schedule_id is null) = (fire_time is null)),
    constraint runs_line_check check ((line is null) = (limited_by is null)),
    constraint runs_claim_check check (
        status <> 'running' or (worker is not null and heartbeat_at is not null and claimed_at is not null)),
    constraint runs_instants_check check (
        created_at between '1900-01-01Z' and '2200-01-01Z' and committed_at between '1900-01-01Z' and '2200-01-01Z'
        and reported_at between '1900-01-01Z' and '2200-01-01Z'
        and progressed_at between '1900-01-01Z' and '2200-01-01Z')
) with (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05
);

-- Each live state has indexes of its own, so that history costs the claim nothing.
-- heartbeat_at is in none of them: a beat rewrites the row in its page and touches no index.

-- For the claim: runs without a lock, by priority; under the lock of a schedule; from a line.
create index runs_queued on pgsched.runs (priority desc, due_at, id) where status = 'queued' and not gated;
create index runs_gated on pgsched.runs (schedule_id, (attempt > 0) desc, priority desc, due_at, id)
    where status = 'queued' and gated;
create index runs_gated_due on pgsched.runs (due_at) where status = 'queued' and gated;
-- Each pass asks if anything waits for an overlap, however many runs stand in line.
create index runs_waiting on pgsched.runs (due_at) where status = 'queued' and gated and line is null;
-- One walk over lines and priorities finds the first of each, however many wait behind it.
create index runs_lines on pgsched.runs (limited_by, entrypoint, line, (-priority), due_at, id)
    where status = 'queued' and gated and line is not null;
create index runs_urgent on pgsched.runs (limited_by, entrypoint, (-priority), due_at, id)
    where status = 'queued' and gated and line is not null;

-- Rules that hold under every worker, clock and retry. A skip is no run: a backfill can run a skipped fire time later,
-- and history shows both. Runs without a schedule are not in this index: it would be a seventh of all that
-- the insert of a job writes.
create unique index runs_one_per_fire_time on pgsched.runs (schedule_id, fire_time, again)
    where status <> 'skipped' and schedule_id is not null and withdrawn_at is null;
create unique index runs_unique_live on pgsched.runs (entrypoint, unique_key, (coalesce(app, '')))
    where unique_key is not null and unique_while = 'live' and status in ('queued', 'running');
create unique index runs_unique_waiting on pgsched.runs (entrypoint, unique_key, (coalesce(app, '')))
    where unique_key is not null and unique_while = 'waiting' and status = 'queued';
create index runs_unique_running on pgsched.runs (entrypoint, unique_key)
    where unique_key is not null and unique_while = 'waiting' and status = 'running';

-- Looks at one schedule, which must not grow with history. Fire times are mostly claimed as they are made, and jobs
-- have no schedule: next to nothing is written to these.
create index runs_running on pgsched.runs (schedule_id, id) where status = 'running';
create index runs_queued_of on pgsched.runs (schedule_id) where status = 'queued' and schedule_id is not null;
create index runs_skipped on pgsched.runs (schedule_id, fire_time) where status = 'skipped';
create index runs_withdrawn on pgsched.runs (schedule_id, fire_time) where withdrawn_at is not null;

-- History. Each status has an age of its own, so that a round of retention does not walk over rows that are kept
-- longer.
create index runs_ended on pgsched.runs (status, finished_at)
    where status in ('succeeded', 'failed', 'cancelled', 'skipped');
-- Written if a run fails or is cancelled for good. A run that succeeds writes nothing here.
create index runs_failed_of_schedule on pgsched.runs (schedule_id, status, finished_at)
    where status in ('failed', 'cancelled') and schedule_id is not null;
create index runs_failed_of_entrypoint on pgsched.runs (entrypoint, status, finished_at)
    where status in ('failed', 'cancelled');

comment on index pgsched.runs_one_per_fire_time is
    'No fire time has two runs, under any number of workers, clocks and retries.';
comment on index pgsched.runs_unique_live is 'No two live runs have one unique key.';
comment on index pgsched.runs_unique_waiting is 'No two queued runs have one unique key that holds while a run waits.';
comment on index pgsched.runs_queued_of is 'The queued runs of a schedule, for its changes and for people.';
comment on index pgsched.runs_withdrawn is 'The few runs whose fire times a reaper gave back, for people.';
comment on index pgsched.runs_ended is 'For retention, and for people looking for recent failures.';
comment on index pgsched.runs_failed_of_schedule is 'The failed and cancelled runs of a schedule, for people.';
comment on index pgsched.runs_failed_of_entrypoint is 'The failed and cancelled runs of an entrypoint, for people.';

comment on table pgsched.runs is
    'One row for each fire time or enqueued job: first the work to do, then its history. A claim is (id, token, worker).';
comment on column pgsched.runs.schedule_id is
    'Null for an enqueued job. Not a foreign key: history outlives its schedule.';
comment on column pgsched.runs.app is
    'The application whose workers may claim it. Null: any worker that has the entrypoint. A schedule''s runs follow the schedule.';
comment on column pgsched.runs.origin is
    'Null: its fire time came, or it was enqueued. trigger, backfill: somebody asked for it.';
comment on column pgsched.runs.fire_time is 'The nominal instant that the expression names; never rewritten.';
comment on column pgsched.runs.previous_fire_time is
    'The fire time of the schedule''s run before this one: together they are the window that this run stands for.';
comment on column pgsched.runs.again is
    'Nought for the run of a fire time; counts on if a backfill runs a fire time again that had a run.';
comment on column pgsched.runs.due_at is 'When it may start: the fire time, or later for a retry.';
comment on column pgsched.runs.unique_key is
    'At most one run of an entrypoint and of an application (or of none) has it, as long as unique_while says.';
comment on column pgsched.runs.unique_while is
    'live: no other run with the key is queued or running. waiting: no other one is queued, and any number may be running.';
comment on column pgsched.runs.reason is
    'Why it was skipped (overlap, missed, paused, bounds, retired) or cancelled.';
comment on column pgsched.runs.detail is 'Of a skip: how it came about, for people.';
comment on column pgsched.runs.skipped_count is
    'How many fire times this skip stands for, from fire_time through skipped_through.';
comment on column pgsched.runs.gated is
    'Claimed only under a lock: its schedule''s, while fewer of its runs are running than its overlap allows, or its entrypoint''s limits.';
comment on column pgsched.runs.limited_by is
    'The application at whose limits it stands in line. Null: it stands in no line, and was claimed from none.';
comment on column pgsched.runs.line is
    'Its place at an entrypoint that has limits: behind others of its key (k and the key), or of its schedule (s and the id). Null: the entrypoint has none. Only a way to find it: a count reads the keys from args.';
comment on column pgsched.runs.attempt is
    'The number of the current or last try, for people and for max_attempts. Each claim adds one, a give-back subtracts it.';
comment on column pgsched.runs.token is
    'The version of the last claim, 0 before the first. It grows with each claim and never repeats: a fencing token.';
comment on column pgsched.runs.worker is 'The worker that claimed it last. Null once a reaper has taken the claim away.';
comment on column pgsched.runs.schedule_version is
    'The version of its schedule when its fire time was claimed. Null: no claim of it can be withdrawn (a job, a trigger, a backfill, a run that has begun before).';
comment on column pgsched.runs.heartbeat_at is 'The claim''s last sign of life.';
comment on column pgsched.runs.started_at is
    'When the function of this attempt was called; written with the first beat or at the end.';
comment on column pgsched.runs.withdrawn_at is
    'When its fire time was given back, because its schedule had changed: by a reaper, since its holder was dead (it is not known if its function was called), or because the database refused to delete the row (it was not called).';
comment on column pgsched.runs.progress_done is 'The progress that the run reported, of progress_total (null: unknown).';
comment on column pgsched.runs.progress_total is 'The goal, in the unit of progress_done; null: unknown.';
comment on column pgsched.runs.progressed_at is
    'When the progress was written. Before claimed_at: an earlier attempt reported it.';
comment on column pgsched.runs.committed_at is
    'When run.transaction() committed its success, together with the application''s own writes. The run has succeeded then, even if its function fails afterwards.';
comment on column pgsched.runs.reported_at is
    'When its worker wrote its function''s result, after a commit of its own: the result may come that much later than the success.';
comment on column pgsched.runs.errors is
    'One entry for each attempt that failed: attempt, at, type (Timeout, WorkerLost, or the exception''s), message, traceback, worker, started_at. The newest twenty.';
comment on column pgsched.runs.stops is
    'One entry for each attempt that ended without an error and was not the last: attempt, at, worker, started_at, end (given_back, cancelled, discarded), reason, final (whether no other of its number followed). The newest twenty; null for none.';

create table pgsched.logs (
    id      bigint generated always as identity,
    run_id  bigint not null references pgsched.runs (id) on delete cascade,
    attempt int not null,
    token   bigint not null default 0,
    worker  uuid not null,
    number  int not null check (number >= 1),
    at      timestamptz not null,
    level   text not null,
    text    text not null,
    -- Two executions of one run can share their attempt number and their worker, and both log.
    primary key (run_id, attempt, token, worker, number)
);
comment on table pgsched.logs is
    'One row for each line that a run logged. Written by its worker, in batches, while it holds the claim; kept as long as the run.';
comment on column pgsched.logs.id is 'Grows from line to line of one run: the order in which they were written.';
comment on column pgsched.logs.run_id is 'The run that logged it. The line is deleted with the run.';
comment on column pgsched.logs.attempt is 'The attempt that logged it.';
comment on column pgsched.logs.token is 'The token of the claim that it was logged under.';
comment on column pgsched.logs.worker is
    'The worker that ran it: after a give-back another attempt of the same number follows.';
comment on column pgsched.logs.number is 'The number of the line in its attempt, from 1 on, so that none is written twice.';
comment on column pgsched.logs.at is 'When it was logged, by its worker''s clock; for people.';
comment on column pgsched.logs.level is 'debug, info, warning or error.';
comment on column pgsched.logs.text is 'The line, without characters that PostgreSQL cannot hold.';

-- --- limits ----------------------------------------------------------------------------------------------

create table pgsched.limits (
    id              bigint generated always as identity,
    gate            text primary key,
    app             text,
    entrypoint      text check (entrypoint !~ '[[:cntrl:]]' and length(entrypoint) between 1 and 200),
    shared          text check (shared !~ '[[:cntrl:]]' and length(shared) between 1 and 200),
    owner           text not null,
    concurrency     int check (concurrency >= 1),
    concurrency_key text[] check (cardinality(concurrency_key) between 1 and 8),
    per_key         int check (per_key >= 1),
    starts          int check (starts >= 1),
    period          pgsched.duration check (period > interval '0'),
    limited         boolean not null generated always as
                    (concurrency is not null or per_key is not null or starts is not null) stored,
    started_at      timestamptz[] not null default '{}',
    started         int[] not null default '{}',
    updated_at      timestamptz not null default clock_timestamp(),
    constraint limits_gate_check check (num_nulls(app, entrypoint) = case when shared is null then 0 else 2 end),
    constraint limits_key_and_number_check check ((concurrency_key is null) = (per_key is null)),
    constraint limits_starts_and_period_check check ((starts is null) = (period is null))
) with (fillfactor = 50);
comment on table pgsched.limits is
    'One row for each application''s entrypoint that has limits or had some, and for each shared name. Workers write it at their start, from the code. The claim locks it and counts under that lock.';
comment on column pgsched.limits.id is 'Its id in set_aside if the server refuses to change it.';
comment on column pgsched.limits.gate is
    'Its key: a JSON array of the application and the entrypoint, or of the shared name.';
comment on column pgsched.limits.app is 'The application. Null: the limits are shared by name.';
comment on column pgsched.limits.entrypoint is 'The entrypoint. Null: the limits are shared by name.';
comment on column pgsched.limits.shared is
    'The name that entrypoints of any application use to share these limits. Null: they are one entrypoint''s own.';
comment on column pgsched.limits.owner is 'code: and the name of the application that declared it last.';
comment on column pgsched.limits.concurrency is 'At most this many runs are running, on all workers together.';
comment on column pgsched.limits.concurrency_key is
    'The names of arguments. Runs with equal values share a key; at most per_key of them are running.';
comment on column pgsched.limits.starts is 'At most this many runs are claimed in any period.';
comment on column pgsched.limits.limited is 'Whether any limit is set.';
comment on column pgsched.limits.started_at is
    'When runs were claimed within the last period, oldest first; started has a count for each. Written by the claim.';

create table pgsched.limit_members (
    entrypoint text not null,
    app        text not null,
    gate       text not null references pgsched.limits (gate),
    limited    boolean not null,
    primary key (entrypoint, app)
);
comment on table pgsched.limit_members is
    'One row for each application''s entrypoint that has limits or had some: which limits they are.';
comment on column pgsched.limit_members.gate is 'The limits that count its runs.';
comment on column pgsched.limit_members.limited is
    'Whether it has limits now. If not, only the runs that still stand in line go through the gate.';

-- --- workers ---------------------------------------------------------------------------------------------

create table pgsched.workers (
    id                 uuid primary key,
    app                text not null,
    project            text,
    fingerprint        text,
    host               text not null,
    machine            text not null default '',
    pid                int not null,
    process_started    text not null default '',
    route              text not null default '',
    direct             boolean not null,
    version            text not null,
    entrypoints        text[] not null,
    state              text not null default 'running' check (state in ('running', 'draining')),
    running            int not null default 0,
    heartbeat_interval pgsched.duration not null,
    stall_timeout      pgsched.duration not null,
    started_at         timestamptz not null default clock_timestamp(),
    seen_at            timestamptz not null default clock_timestamp(),
    passed_at          timestamptz,
    tzdata             text,
    tzdata_from        text,
    tzdata_package     text,
    withheld           text[] not null default '{}'
);
comment on table pgsched.workers is 'One row for each live daemon process.';
comment on column pgsched.workers.project is
    'The project that its code belongs to: the name in its pyproject.toml, of its distribution or of its folder. Null: unknown.';
comment on column pgsched.workers.fingerprint is
    'A hash over the schedules that its code declares. Null: of a version that knew none.';
comment on column pgsched.workers.machine is
    'The kernel that its process runs under, since its start, and the name space of its pid: a worker of the same machine can look whether the process still exists. Empty: not known.';
comment on column pgsched.workers.process_started is
    'When its process started, as the machine''s kernel counts, so that another process with its pid is not taken for it. Empty: not known.';
comment on column pgsched.workers.route is
    'How it reaches the server: its own address, the target, and the address that the server sees. Empty: not known.';
comment on column pgsched.workers.direct is
    'Whether its sessions are the server''s own, so that a missing one proves its death. False behind a pooler.';
comment on column pgsched.workers.passed_at is
    'When one of its beats last passed over a run that somebody else had locked. It counts as a sign of life of all of its claims.';
comment on column pgsched.workers.tzdata is 'The tzdata release that it reads, such as 2026a. Null: unknown.';
comment on column pgsched.workers.tzdata_from is
    'The source of its time zone rules: a folder of the host, or the package tzdata.';
comment on column pgsched.workers.tzdata_package is 'The release of the package tzdata that is installed with it.';
comment on column pgsched.workers.withheld is
    'The time zones whose schedules it leaves to others, because its rules for them are not the noted ones.';

create table pgsched.declarations (
    app         text primary key,
    fingerprint text not null,
    applied_at  timestamptz not null default clock_timestamp(),
    former      text[] not null default '{}'
);
comment on table pgsched.declarations is
    'One row for each application: which set of declared schedules is in force. Written by workers, when they start with another one.';
comment on column pgsched.declarations.app is 'The application''s name, as in the owner of its schedules, after code:.';
comment on column pgsched.declarations.fingerprint is 'A hash over the declared schedules that are in force.';
comment on column pgsched.declarations.applied_at is 'When they came into force.';
comment on column pgsched.declarations.former is
    'The fingerprints that were in force before, newest first, at most 20: a worker that starts with one of them is older, or rolled back.';

create table pgsched.zones (
    name       text primary key,
    digest     text not null,
    noticed_at timestamptz not null default clock_timestamp(),
    release    text
);
comment on table pgsched.zones is
    'The time zones that schedules are read in, and the rules in force for each. Written by workers that know newer rules than the noted ones.';
comment on column pgsched.zones.digest is 'A hash over the zone''s changes of UTC offset from 2020 to 2050.';
comment on column pgsched.zones.noticed_at is 'When these rules became the ones that next_run is planned by.';
comment on column pgsched.zones.release is
    'The tzdata release that these rules were read from, such as 2026a. Null: unknown.';

-- --- threads that outlive their runs, and rows that the server refuses ------------------------------------

-- A run ends, but its function may go on in its thread, and must count as running.
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
    'One row for each attempt that has ended, or lost its claim, while its function goes on in a thread. It counts for overlap and limits, and its run is not claimed meanwhile. Written by its worker.';
comment on column pgsched.left_behind.app is
    'The application whose limits count it. Null: its worker''s application.';
comment on column pgsched.left_behind.counts_until is
    'Its worker moves this on as long as the thread goes on. After the death of its worker the instant passes.';

-- Rows that the server refuses to change wait here with the reason, so that they stop nobody else's work.
create table pgsched.set_aside (
    kind        text not null check (kind in ('run', 'schedule', 'replan', 'limits', 'end', 'beat', 'reap')),
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
    'The refused change: the claim of a run, the plan of a schedule, its new plan by new time zone rules, the note of starts at limits, the end, the beat or the reaping of a run.';
comment on column pgsched.set_aside.id is 'The id of the schedule, the limits or the run.';
comment on column pgsched.set_aside.row_version is
    'The xmin of the row that was refused. A row with another one has changed and is tried again.';
comment on column pgsched.set_aside.reason is 'The server''s message, without row data.';
comment on column pgsched.set_aside.since is 'When the row was first refused.';
comment on column pgsched.set_aside.until is 'When the row is tried again, changed or not.';

-- --- locks that are rows ----------------------------------------------------------------------------------

-- Any role that can connect can hold an advisory lock; only a role with rights can lock a row.
create table pgsched.turns (
    name text primary key
);
comment on table pgsched.turns is
    'One row for each kind of work that one worker at a time does: it locks the row.';
insert into pgsched.turns (name) values ('retention');

create table pgsched.transactions (
    token bigint primary key
);
comment on table pgsched.transactions is
    'run.transaction() inserts a row when it begins and deletes it before it commits, so that nobody ever sees one. A session that inserts the same token waits for the end of that transaction.';
comment on column pgsched.transactions.token is 'The claim''s.';

-- A token only grows, so a write under an old claim can never land on a later one. The attempt number serves people,
-- and a give-back subtracts from it again.
create sequence pgsched.tokens;
comment on sequence pgsched.tokens is 'The next claim''s token. Each claim draws one; none is drawn twice.';

-- The name of a schema may hold anything, and a literal would be read as text: so the function is made by the oid.
do $do$
begin
    execute (
        select format('create function %1$I.next_token() returns bigint language sql volatile return nextval(%2$s::oid::regclass)',
                      n.nspname, c.oid)
        from (select tableoid from pgsched.tokens) t
        join pg_catalog.pg_class c on c.oid = t.tableoid
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    );
end $do$;
comment on function pgsched.next_token() is
    'The token of a new claim. Its body is resolved when it is made, so it needs no search_path, and is inlined.';

-- --- views -----------------------------------------------------------------------------------------------

create view pgsched.live_workers as
    select w.id, w.app, w.fingerprint, w.entrypoints, w.host, w.pid, w.project
    from pgsched.workers w
    where w.seen_at > now() - interval '3 minutes'
        or exists (select from pg_catalog.pg_stat_activity a where a.application_name = 'pgsched ' || w.id);
comment on view pgsched.live_workers is
    'The workers that were seen within three minutes, or that have a session on the server.';

create view pgsched.executing as
    select r.schedule_id, r.id as run_id from pgsched.runs r where r.status = 'running'
    union all
    select b.schedule_id, b.run_id from pgsched.left_behind b where b.counts_until > now();
comment on view pgsched.executing is
    'The runs whose functions count for the overlap of their schedules: running ones, and those that have ended or lost their claim while their threads go on.';

-- A run counts at the limits of the application that runs it.
create view pgsched.running_at_limits as
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

-- At every start a claim pays for each step of its plan, also for steps that find nothing. Each kind of rows has a part
-- of its own here, so that the planner leaves out the parts that a statement does not ask for. An end or a beat is
-- refused while other writes of the same run succeed, so its row may have changed meanwhile.
create view pgsched.resting as
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
comment on view pgsched.resting is
    'The rows of set_aside that are as they were when the server refused them. Until `until` no worker tries them.';

-- A run never executes twice at once: if it is retried, or reaped although its worker lives, it waits.
create view pgsched.unclaimable as
    select a.id from pgsched.resting a where a.kind = 'run' and a.until > now()
    union all
    select b.run_id from pgsched.left_behind b where b.counts_until > now();
comment on view pgsched.unclaimable is
    'The runs that no worker claims now: the server refused their claim, or an earlier attempt goes on in a thread.';
