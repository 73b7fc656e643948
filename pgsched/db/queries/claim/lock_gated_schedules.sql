-- Locks the schedules with a waiting run that could be claimed.
-- Such a run is due, its entrypoint is known here, and fewer runs are running than the overlap allows. That check is a
-- filter on this statement's snapshot; lock_gated_runs counts again under the lock.
-- ids: only these schedules.
-- Schedules are walked one by one, so that one with ten thousand waiting runs costs no more than one with a single run.
with recursive waiting (schedule_id) as (
    (select schedule_id from pgsched.runs where status = 'queued' and gated order by schedule_id limit 1)
    union all
    select (
        select r.schedule_id from pgsched.runs r
        where r.status = 'queued' and r.gated and r.schedule_id > w.schedule_id
        order by r.schedule_id limit 1
    )
    from waiting w
    where w.schedule_id is not null
)
select s.id, s.name, s.entrypoint, s.expression, s.timezone, s.args::text as args_json, s.overlap, s.catch_up,
    s.catch_up_limit, s.grace, s.jitter, s.timeout, s.max_attempts, s.backoff, s.max_backoff, s.starts_at, s.ends_at,
    s.max_runs, s.run_count, s.priority, s.status, s.note, s.paused_at, s.resumed_at, s.paused_until, s.owner, s.next_run,
    s.last_run, s.last_status, s.accounted_through, s.timed_at, nullif(s.interruptions, '[]')::text as interruptions_json,
    s.created_at, s.updated_at
from waiting w
join pgsched.schedules s on s.id = w.schedule_id
where (%(ids)s::bigint[] is null or s.id = any(%(ids)s)) and exists (
        select from pgsched.runs r
        where r.status = 'queued' and r.gated and r.line is null and r.schedule_id = s.id and r.due_at <= now() + %(lookahead)s
            and r.entrypoint = any(%(entrypoints)s) and (r.app is null or r.app = %(app)s)
            and r.id not in (select id from pgsched.unclaimable)
            and not (s.status = 'paused' and r.attempt = 0 and r.origin is null)
        offset 0  -- a look for each schedule: before 18, the planner would join with all waiting runs
    )
    and (
        s.overlap = 'allow'
        or (select count(*) from pgsched.executing e where e.schedule_id = s.id)
            < pgsched.overlap_limit(s.overlap)
    )
order by s.id
limit %(limit)s
for no key update of s skip locked
