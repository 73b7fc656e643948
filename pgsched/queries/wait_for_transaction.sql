-- Waits until the transaction of that name has come to its end. A statement of its own: what is read after it must see
-- that end.
select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(%(name)s, 0))
