-- Queues a run of an entrypoint for each element of `args`.
-- Returns the ids in that order, and whether each run is new.
select coalesce(pg_catalog.array_agg(e.run_id order by e.place), '{}') as ids,
    coalesce(pg_catalog.array_agg(e.queued order by e.place), '{}') as queued
from pgsched.enqueue_many_unique(
    %(entrypoint)s::text, %(args)s::text[]::jsonb[], %(due_at)s::timestamptz, %(priority)s::int,
    %(unique_keys)s::text[], %(app)s::text, %(unique)s::text
) with ordinality as e (run_id, queued, place)
