-- Limits how long each statement of this transaction may wait for a lock, and how long it may take.
-- A trigger may make one row take for ever.
select pg_catalog.set_config('lock_timeout', %(limit)s, true),
    pg_catalog.set_config('statement_timeout', %(most)s, true)
