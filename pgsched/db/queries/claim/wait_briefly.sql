-- How long a statement of this transaction may wait for a lock, and take: a trigger may make one row take for ever.
select pg_catalog.set_config('lock_timeout', %(limit)s, true),
    pg_catalog.set_config('statement_timeout', %(most)s, true)
