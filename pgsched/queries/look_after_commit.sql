-- Whether a COMMIT that was not answered has been done. Until then, or until it is rolled back, its transaction has the
-- row locked: this waits for it. No row: the claim is lost.
select r.committed_at is not null as committed
from pgsched.runs r
where r.id = %(id)s and r.attempt = %(attempt)s and r.worker = %(worker)s
    and (r.status = 'running' or r.committed_at is not null)
for no key update
