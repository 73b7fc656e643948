-- Writes a run's success and commits, in one message: a worker that stands still in between would keep the row locked, and
-- no reaper could replace it. An error ends the message before its commit. "And chain", because psycopg ends the block
-- once more.
delete from pgsched.transactions where token = %(token)s;
select pgsched.commit_run(%(id)s, %(token)s, %(worker)s, %(started_at)s::timestamptz);
commit and chain
