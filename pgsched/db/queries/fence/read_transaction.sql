-- Whether the server is at work on a statement of a transaction. No session, or an idle one: its answer was lost.
-- A pooler invents process ids, and the block may have renamed its session, so either is enough.
select exists (
    select from pg_catalog.pg_stat_activity
    where (application_name = %(name)s or pid = %(pid)s) and usename = session_user
        and datname = pg_catalog.current_database() and (state like 'idle%%') is not true
)
