-- What became of ends that did not land just now. True: an earlier try of the same write had landed (the answer to its
-- commit was lost); the row still names attempt and worker, which a reaper clears. False: the claim holds, and somebody
-- has the row locked; the claim of a run whose transaction has committed holds, too, as long as its result is to be
-- written. Missing: the claim is lost. A statement of its own, since it is seldom needed and joining it to every batch
-- cost more than the batch.
select g.id, g.attempt, r.status <> 'running' and r.committed_at is null as landed
from unnest(%(ids)s::bigint[], %(attempts)s::int[], %(refunds)s::int[]) as g (id, attempt, refund)
cross join lateral (
    select r.status, r.committed_at
    from pgsched.runs r
    where r.id = g.id and r.worker = %(worker)s
        and r.attempt = case when r.status = 'running' or r.committed_at is not null then g.attempt
                        else g.attempt - g.refund end
    offset 0
) r
