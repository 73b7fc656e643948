-- Gives the live runs of one application that belong to none of its schedules to another: enqueued jobs, and runs whose
-- schedule is gone. Returns how many. One statement and its one snapshot, as in schedule_moved().
with live as materialized (
    select r.id from pgsched.runs r where r.status = 'queued' and r.gated and r.app = %(old)s
    union all
    select r.id from pgsched.runs r where r.status = 'queued' and not r.gated and r.app = %(old)s
    union all
    select r.id from pgsched.runs r where r.status = 'running' and r.app = %(old)s
    union all
    select r.id from pgsched.runs r
    where r.status = 'queued' and r.gated and r.line is not null and r.limited_by = %(old)s
),
-- Nobody claims at the limits of the old one any more: a run leaves that line, and a claim finds another one for it.
moved as (
    update pgsched.runs r
    set app = case when r.app = %(old)s then %(new)s else r.app end,
        limited_by = nullif(r.limited_by, %(old)s),
        line = case when r.limited_by = %(old)s then null else r.line end,
        gated = case when r.limited_by = %(old)s
            then coalesce((select s.overlap <> 'allow' from pgsched.schedules s where s.id = r.schedule_id), false)
            else r.gated end
    where r.id = any(array(select id from live)) and r.status in ('queued', 'running')
        and (r.app = %(old)s or r.limited_by = %(old)s)
    returning r.app
),
lifted as (
    update pgsched.limit_members m set limited = false where m.app = %(old)s and m.limited
)
select count(*)::int from moved where app = %(new)s
