-- Ends the transactions of attempts whose claims were taken away.
-- They can never commit, and their locks would make the next attempt wait, for ever if the worker hangs. Only sessions
-- of our own role.
select pg_terminate_backend(pid) from pg_catalog.pg_stat_activity
where application_name = any(%(names)s::text[]) and usename = session_user
