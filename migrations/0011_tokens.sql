-- A claim has a version that never repeats: runs.token. The attempt number serves people, and a give-back takes it off
-- again; the token only grows, so a write under an old claim can never land on a later one.

create sequence pgsched.tokens;
comment on sequence pgsched.tokens is 'The next claim''s token. Each claim draws one; none is drawn twice.';

-- The name of a schema may hold anything, and a literal would be read as a text: so the function is made by its oid.
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

alter table pgsched.runs add column token bigint not null default 0;
comment on column pgsched.runs.token is
    'The version of the last claim, 0 before the first. It grows with each claim and never repeats: a fencing token.';
comment on column pgsched.runs.attempt is
    'The number of the current or last try, for people and for max_attempts. Each claim adds one, a give-back subtracts it.';
comment on table pgsched.runs is
    'One row a fire time or an enqueued job: first the work to do, then its history. A claim is (id, token, worker).';

-- Two executions of one run can share their attempt number and their worker, and both log.
alter table pgsched.logs add column token bigint not null default 0;
alter table pgsched.logs drop constraint logs_pkey, add primary key (run_id, attempt, token, worker, number);
comment on column pgsched.logs.token is 'The token of the claim under which it was said.';

drop function pgsched.commit_run(bigint, int, uuid, timestamptz);
create function pgsched.commit_run(run_id bigint, token bigint, worker uuid, started_at timestamptz default null)
    returns void language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
declare
    now_ timestamptz := clock_timestamp();
begin
    -- A beat or a reaper that has the row just now is waited for, and then looked at: that takes read committed.
    update pgsched.runs r
    set status = 'succeeded', committed_at = now_, finished_at = now_,
        -- By the worker's guess of this clock it may have begun a moment from now.
        started_at = least(coalesce(r.started_at, commit_run.started_at), now_)
    where r.id = commit_run.run_id and r.token = commit_run.token and r.worker = commit_run.worker
        and r.status = 'running';
    if not found then
        raise exception 'run % is no longer held by that claim', run_id using errcode = 'PS410';
    end if;
end $$;
comment on function pgsched.commit_run(bigint, bigint, uuid, timestamptz) is
    'Writes a run''s success inside the application''s own transaction, under its claim: both commit, or neither does. To be sent together with the COMMIT: until that comes, nobody can take the claim away. PS410: the claim is gone.';
