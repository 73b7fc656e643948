-- What is kept of a run while it runs and after it: the success that it has committed itself, what it logs, how far it
-- is, how each of its attempts ended.

alter table pgsched.runs add column committed_at timestamptz;
comment on column pgsched.runs.committed_at is
    'When run.transaction() committed its success, together with the application''s own writes. It has succeeded then, whatever its function does afterwards.';

create function pgsched.commit_run(run_id bigint, attempt int, worker uuid, started_at timestamptz default null)
    returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    -- A beat or a reaper that has the row just now is waited for, and then looked at: that takes read committed.
    update pgsched.runs r
    set status = 'succeeded', committed_at = clock_timestamp(), finished_at = clock_timestamp(),
        -- By the worker's guess of this clock it may have begun a moment from now.
        started_at = least(coalesce(r.started_at, commit_run.started_at), clock_timestamp())
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
comment on column pgsched.runs.progressed_at is
    'When that was written. An earlier attempt said it where this is before claimed_at.';
