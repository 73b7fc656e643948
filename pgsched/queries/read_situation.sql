-- What a due fire time of a schedule may be waiting for: the clock, whether a live worker knows its entrypoint (seen
-- within three minutes, or connected), and its live runs.
select clock_timestamp() as now,
    exists (
        select from pgsched.workers w
        where s.entrypoint = any(w.entrypoints) and (
            w.seen_at > now() - interval '3 minutes'
            or exists (select from pg_catalog.pg_stat_activity a where a.application_name = 'pgsched ' || w.id)
        )
    ) as served,
    array(
        select r.id from pgsched.runs r
        where r.schedule_id = s.id and r.status in ('queued', 'running') and r.status <> 'skipped'
        order by r.id limit 4
    ) as live
from pgsched.schedules s
where s.name = %(name)s::text
