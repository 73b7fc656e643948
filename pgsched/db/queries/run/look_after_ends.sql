-- Finds out about ends that did not land.
-- - true: an earlier try of the same write landed, but the answer to its commit was lost. The row still names token and
--   worker, which a reaper and the next claim replace.
-- - false: the claim holds, and somebody has the row locked. If the run's transaction has committed, its claim also
--   holds until its result is written.
-- committed: whether the run's own transaction has committed, by this database.
-- - missing: the claim is lost
-- A statement of its own, because it is seldom needed, and joining it to every batch cost more than the batch.
select g.id, g.token, r.status <> 'running' and r.committed_at is null as landed, r.committed_at is not null as committed
from unnest(%(ids)s::bigint[], %(tokens)s::bigint[]) as g (id, token)
cross join lateral (
    select r.status, r.committed_at
    from pgsched.runs r
    where r.id = g.id and r.token = g.token and r.worker = %(worker)s
    offset 0
) r
