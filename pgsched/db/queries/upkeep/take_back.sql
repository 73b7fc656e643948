-- Forgets the entries of rows that could be changed after all, or that are gone.
-- Returns them, and whether others remain. Each row is looked up by its id: an EXISTS may be planned as a scan of all
-- rows.
with taken_back as (
    delete from pgsched.set_aside a
    where case
        when a.kind in ('schedule', 'replan') then coalesce((
            select s.status not in ('active', 'paused') or coalesce(s.planned_at > a.since, false)
            from pgsched.schedules s where s.id = a.id
        ), true)
        when a.kind = 'limits' then coalesce((
            select l.xmin::text <> a.row_version from pgsched.limits l where l.id = a.id
        ), true)
        else coalesce((
            select r.status <> case a.kind when 'run' then 'queued' else 'running' end
                or a.kind in ('beat', 'reap') and coalesce(r.heartbeat_at > a.since, false)
            from pgsched.runs r where r.id = a.id
        ), true)
    end
    returning a.kind, a.id
)
select (select count(*) from pgsched.set_aside) > (select count(*) from taken_back) as others, t.kind, t.id
from (select) one
left join taken_back t on true
