-- Ends transactions of attempts whose claims were taken away: they can never commit, and whatever they have locked would
-- make the next attempt wait, for ever where the worker stands still. Only sessions of our own role.
select pg_terminate_backend(pid) from pg_catalog.pg_stat_activity
where application_name = any(%(names)s::text[]) and usename = session_user
