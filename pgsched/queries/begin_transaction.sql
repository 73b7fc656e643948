-- Names the session after the attempt for as long as its transaction lasts, so that a reaper can end it, and locks that
-- name, by which one can wait for the transaction's end.
select pg_catalog.set_config('application_name', %(name)s, true),
    pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(%(name)s, 0))
