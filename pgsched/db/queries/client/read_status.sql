-- Where a run is in its life, by its primary key: asked again and again by who waits for its end. One whose transaction
-- has committed goes on until its worker has written what its function returned, or will not any more.
select case
        when r.committed_at is not null and r.reported_at is null
            and exists (select from pgsched.live_workers w where w.id = r.worker) then 'running'
        else r.status
    end
from pgsched.runs r
where r.id = %(run_id)s::bigint
