-- The applications that own schedules, or that have queued or running runs, by name.
select distinct a.app from (
    select coalesce(s.app, substr(s.owner, 6)) as app from pgsched.schedules s
    where s.app is not null or starts_with(s.owner, 'code:')
    union all select r.app from pgsched.runs r where r.status = 'queued' and r.gated and r.app is not null
    union all select r.app from pgsched.runs r where r.status = 'queued' and not r.gated and r.app is not null
    union all select r.app from pgsched.runs r where r.status = 'running' and r.app is not null
) a
order by 1
