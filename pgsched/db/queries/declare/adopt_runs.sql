-- Gives the live runs of one application that belong to none of its schedules to another application.
-- These are enqueued jobs, and runs whose schedule is gone. Runs in line at the old limits are queued again, and the
-- claim puts them in line at the new ones. A run loses its unique key if a live run of the new application has it: both
-- will run. Returns how many runs it gave.
-- One statement with one snapshot, as in schedule_moved().
with live as materialized (
    select r.id from pgsched.runs r where r.status = 'queued' and r.gated and %(old)s in (r.app, r.limited_by)
    union all
    select r.id from pgsched.runs r where r.status = 'queued' and not r.gated and r.app = %(old)s
    union all
    select r.id from pgsched.runs r where r.status = 'running' and %(old)s in (r.app, r.limited_by)
),
moved as (
    update pgsched.runs r
    set app = case when r.app = %(old)s then %(new)s else r.app end,
        limited_by = null, line = null,
        gated = coalesce((select s.overlap <> 'allow' from pgsched.schedules s where s.id = r.schedule_id), false),
        -- Each lookup has an index of its own.
        unique_key = case when r.unique_key is null or r.app is distinct from %(old)s or not (
            exists (
                select from pgsched.runs k
                where k.entrypoint = r.entrypoint and k.unique_key = r.unique_key and coalesce(k.app, '') = %(new)s
                    and k.unique_key is not null and k.unique_while = 'live' and k.status in ('queued', 'running')
            )
            or exists (
                select from pgsched.runs k
                where k.entrypoint = r.entrypoint and k.unique_key = r.unique_key and coalesce(k.app, '') = %(new)s
                    and k.unique_key is not null and k.unique_while = 'waiting' and k.status = 'queued'
            )
            or exists (
                select from pgsched.runs k
                where k.entrypoint = r.entrypoint and k.unique_key = r.unique_key and k.app = %(new)s
                    and k.unique_key is not null and k.unique_while = 'waiting' and k.status = 'running'
            )
        ) then r.unique_key end
    where r.id = any(array(select id from live)) and r.status in ('queued', 'running')
    returning r.app
)
select count(*)::int from moved where app = %(new)s
