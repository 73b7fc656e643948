-- What is kept of a run while it runs and after it: the success that it has committed itself, what it logs, how far it
-- is, how each of its attempts ended.

alter table pgsched.runs add column committed_at timestamptz, add column reported_at timestamptz;
comment on column pgsched.runs.reported_at is
    'When its worker wrote what its function returned, after a commit of its own: its result may come that much later than its success.';
comment on column pgsched.runs.committed_at is
    'When run.transaction() committed its success, together with the application''s own writes. It has succeeded then, whatever its function does afterwards.';

create function pgsched.commit_run(run_id bigint, attempt int, worker uuid, started_at timestamptz default null)
    returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    now_ timestamptz := clock_timestamp();
begin
    -- A beat or a reaper that has the row just now is waited for, and then looked at: that takes read committed.
    update pgsched.runs r
    set status = 'succeeded', committed_at = now_, finished_at = now_,
        -- By the worker's guess of this clock it may have begun a moment from now.
        started_at = least(coalesce(r.started_at, commit_run.started_at), now_)
    where r.id = commit_run.run_id and r.attempt = commit_run.attempt and r.worker = commit_run.worker
        and r.status = 'running';
    if not found then
        raise exception 'run % is no longer held by that claim', run_id using errcode = 'PS410';
    end if;
end $$;
comment on function pgsched.commit_run(bigint, int, uuid, timestamptz) is
    'Writes a run''s success inside the application''s own transaction, under its claim: both commit, or neither does. To be sent together with the COMMIT: until that comes, nobody can take the claim away. PS410: the claim is gone.';

-- --- what a run says ---------------------------------------------------------------------------------------

create table pgsched.logs (
    id      bigint generated always as identity,
    run_id  bigint not null references pgsched.runs (id) on delete cascade,
    attempt int not null,
    worker  uuid not null,
    number  int not null check (number >= 1),
    at      timestamptz not null,
    level   text not null,
    text    text not null,
    primary key (run_id, attempt, worker, number)
);
comment on table pgsched.logs is
    'One row a line that a run logged. Written by its worker, in batches, while it holds the claim; kept as long as the run.';
comment on column pgsched.logs.run_id is 'Whose line it is; it goes when the run does.';
comment on column pgsched.logs.attempt is 'In which attempt it was said.';
comment on column pgsched.logs.level is 'debug, info, warning or error.';
comment on column pgsched.logs.text is 'The line, without what PostgreSQL cannot hold.';
comment on column pgsched.logs.id is 'Grows from line to line of one run: the order in which they were written.';
comment on column pgsched.logs.worker is
    'Who ran it: an attempt that was given back is followed by another one of the same number.';
comment on column pgsched.logs.number is 'Of the line among its attempt''s, from 1 on: so that none is written twice.';
comment on column pgsched.logs.at is 'When it was said, by its worker''s clock; for people.';

alter table pgsched.runs
    add column progress_done float8,
    add column progress_total float8,
    add column progressed_at timestamptz;
comment on column pgsched.runs.progress_done is 'How far the run said that it is, of progress_total (null: unknown).';
comment on column pgsched.runs.progress_total is 'How far there is to go, in the unit of progress_done; null: unknown.';
comment on column pgsched.runs.progressed_at is
    'When that was written. An earlier attempt said it where this is before claimed_at.';

-- --- how its attempts ended ----------------------------------------------------------------------------------

alter table pgsched.runs add column stops jsonb check (jsonb_typeof(stops) = 'array');
comment on column pgsched.runs.stops is
    'One entry an attempt that ended without an error and was not the last: attempt, at, worker, started_at, end (given_back, cancelled, discarded), reason, final (whether no other of its number followed). The newest twenty; null for none.';
comment on column pgsched.runs.errors is
    'One entry an attempt that failed: attempt, at, type (Timeout, WorkerLost, or the exception''s), message, traceback, worker, started_at. The newest twenty.';

create function pgsched.appended(entries jsonb, entry jsonb) returns jsonb
    language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
    -- A run of a thousand attempts must not become a book.
    select case when jsonb_array_length(entries) >= 20 then entries - 0 else coalesce(entries, '[]') end || entry
$$;
comment on function pgsched.appended(jsonb, jsonb) is 'A list with one entry more, of which the newest twenty are kept.';

create or replace function pgsched.retry(run_id bigint) returns void
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
declare
    state text;
begin
    select r.status into state from pgsched.runs r where r.id = run_id for update;
    if state is null then
        perform pgsched.no_run(run_id);
    elsif state not in ('failed', 'cancelled') then
        raise exception 'Run % is %: only a failed or cancelled one can be retried.', run_id, state
            using errcode = 'PS409';
    end if;
    update pgsched.runs r
    set status = 'queued', due_at = clock_timestamp(),
        max_attempts = case when max_attempts is not null then greatest(max_attempts, attempt + 1) end,
        -- How the last attempt ended is told by the row itself as long as it is the last.
        stops = case when r.status = 'cancelled' and r.attempt > 0
                and (r.errors -> -1 ->> 'attempt') is distinct from r.attempt::text
                and not coalesce(r.stops @> jsonb_build_array(jsonb_build_object('attempt', r.attempt, 'final', true)), false)
            then pgsched.appended(r.stops, jsonb_build_object(
                'attempt', r.attempt, 'at', r.finished_at, 'worker', r.worker, 'started_at', r.started_at,
                'end', case when r.cancel_requested_at is null then 'discarded' else 'cancelled' end,
                'reason', r.reason, 'final', true))
            else r.stops end,
        finished_at = null, reason = null, cancel_requested_at = null, worker = null,
        gated = g.overlap <> 'allow' or g.line is not null, line = g.line
    from (
        select q.overlap, pgsched.line_for(r.entrypoint, r.args, r.schedule_id, q.overlap) as line
        from pgsched.runs r
        cross join lateral (
            select coalesce((select s.overlap from pgsched.schedules s where s.id = r.schedule_id), 'allow') as overlap
        ) q
        where r.id = run_id
    ) g
    where r.id = run_id;
exception when unique_violation then
    raise exception 'Run % cannot be retried: a live run has its unique key.', run_id using errcode = 'PS409';
end $$;

comment on function pgsched.retry(bigint) is
    'Queues a failed or cancelled run again, with at least one more attempt; its errors stay. PS404, PS409 where it has neither failed nor been cancelled, or where a live run has its unique_key.';

-- --- how long it is kept -------------------------------------------------------------------------------------

-- Each status has an age of its own: what is kept longer must not be walked over by each round.
drop index pgsched.runs_finished;
create index runs_ended on pgsched.runs (status, finished_at)
    where status in ('succeeded', 'failed', 'cancelled', 'skipped');
comment on index pgsched.runs_ended is 'For retention, and for whoever looks for what failed lately.';
