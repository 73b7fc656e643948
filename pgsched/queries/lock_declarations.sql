-- Lets the starts of one application take turns, until the transaction ends: also behind a pooler, and also where
-- the application has no row to lock yet.
select pg_advisory_xact_lock(hashtextextended(%(key)s, 0))
