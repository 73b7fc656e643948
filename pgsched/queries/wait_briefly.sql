-- How long a statement of this transaction may wait for a lock.
select pg_catalog.set_config('lock_timeout', %(limit)s, true)
