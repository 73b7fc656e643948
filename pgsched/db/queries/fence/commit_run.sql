-- Writes a run's success and commits, in one message.
-- If a worker hung in between, the row would stay locked, and no reaper could take the claim away. An error ends the
-- message before its commit. "And chain", because psycopg ends the block once more.
-- The limits are ours: a beat or a reaper may hold the row for a moment, and the application's own limits are not made
-- for that.
set local lock_timeout = %(limit)s;
set local statement_timeout = %(limit)s;
delete from pgsched.transactions where token operator(pg_catalog.=) %(token)s;
select pgsched.commit_run(%(id)s, %(token)s, %(worker)s, %(started_at)s::timestamptz);
commit and chain
