-- What became of ends that did not land just now. True: an earlier try of the same write had landed (the answer to its
-- commit was lost); the row still names token and worker, which a reaper and the next claim replace. False: the claim holds, and somebody
-- has the row locked; the claim of a run whose transaction has committed holds, too, as long as its result is to be
-- written. Missing: the claim is lost. A statement of its own, since it is seldom needed and joining it to every batch
-- cost more than the batch.
select g.id, g.token, r.status <> 'running' and r.committed_at is null as landed
from unnest(%(ids)s::bigint[], %(tokens)s::bigint[]) as g (id, token)
cross join lateral (
    select r.status, r.committed_at
    from pgsched.runs r
    where r.id = g.id and r.token = g.token and r.worker = %(worker)s
    offset 0
) r
