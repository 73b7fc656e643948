-- Whether a transaction that has ended has committed. No row: it has not, and the claim is lost.
select r.committed_at is not null as committed
from pgsched.runs r
where r.id = %(id)s and r.token = %(token)s and r.worker = %(worker)s
    and (r.status = 'running' or r.committed_at is not null)
