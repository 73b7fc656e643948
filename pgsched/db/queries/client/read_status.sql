-- The status of a run, by its primary key; callers that wait for its end ask again and again.
-- A run whose transaction has committed is running until its worker has written its result, or no longer can.
select case
        when r.committed_at is not null and r.reported_at is null
            and exists (select from pgsched.live_workers w where w.id = r.worker) then 'running'
        else r.status
    end
from pgsched.runs r
where r.id = %(run_id)s::bigint
