-- Moves the queued runs of locked schedules to the entrypoint and the arguments that these have by now.
-- The workers with the old entrypoint may be gone for good, and the schedule's fire times would wait behind these runs
-- for ever. Their next attempt waits for no backoff, which belonged to the old code. A run that somebody has locked is
-- moved another time.
with astray as materialized (
    select r.id, s.entrypoint, s.args, s.overlap, pgsched.limiting_app(s.entrypoint, s.app) as limited_by
    from pgsched.runs r
    join pgsched.schedules s on s.id = r.schedule_id
    where r.status = 'queued' and r.gated and r.schedule_id = any(%(schedule_ids)s) and r.entrypoint <> s.entrypoint
    order by r.id
    for no key update of r skip locked
)
update pgsched.runs r
set entrypoint = astray.entrypoint, args = astray.args,
    gated = astray.overlap <> 'allow' or astray.limited_by is not null, limited_by = astray.limited_by,
    line = case when astray.limited_by is not null then pgsched.line_for(
        astray.entrypoint, astray.args, r.schedule_id, astray.overlap, astray.limited_by) end,
    due_at = case when r.attempt > 0 then least(r.due_at, clock_timestamp()) else r.due_at end
from astray
where r.id = astray.id
