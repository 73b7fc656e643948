-- What is kept of a run while it runs and after it: the success that it has committed itself.

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
