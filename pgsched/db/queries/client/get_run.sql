-- One run, all of it. JSON is read as text, so that no value can break the page.
-- - detail, if it goes on after it should have stopped: says so; its worker can only ask it again
-- - detail, if the database refuses to change it: the reason
-- - detail, if it waits for its own earlier attempt: the worker whose thread still runs that
select r.id, r.schedule_id, s.name as schedule, r.app, r.entrypoint, r.args::text as args, r.fire_time,
    r.previous_fire_time, r.due_at, r.priority, r.origin, r.again, r.status, r.reason,
    case when a.reason is not null
            then 'the database refuses its ' || case a.kind when 'run' then 'claim' else a.kind end || ': ' || a.reason
                || '; it is tried again when it changes, at the latest a little after '
                || to_char(a.until at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"')
        when b.since is not null
            then 'it starts once its earlier attempt has ended, which goes on in a thread of worker ' || b.worker
                || coalesce(' (' || b.host || ', process ' || b.pid || ')', '') || ' since '
                || to_char(b.since at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"')
                || '; if that hangs, restart the worker'
        when r.status <> 'running' then r.detail
        when r.cancel_requested_at < now() - interval '10 seconds'
            then 'still running ' || date_trunc('second', now() - r.cancel_requested_at) || ' after it was asked to stop'
        when r.started_at + r.timeout < now() - interval '10 seconds'
            then 'still running ' || date_trunc('second', now() - r.started_at - r.timeout) || ' after its timeout'
    end as detail,
    r.skipped_count, r.skipped_through, r.attempt, r.max_attempts, r.backoff, r.max_backoff, r.timeout, r.worker,
    r.claimed_at, r.started_at, r.heartbeat_at, r.cancel_requested_at, r.finished_at,
    case when r.progressed_at >= r.claimed_at and r.status <> 'queued'
        then json_build_object('done', r.progress_done, 'total', r.progress_total)::text end as progress,
    r.result::text as result, r.errors::text as errors, r.stops::text as stops, r.unique_key, r.created_at
from pgsched.runs r
left join pgsched.schedules s on s.id = r.schedule_id
left join lateral (
    select a.kind, a.reason, a.until from pgsched.resting a
    where a.kind in ('run', 'end', 'beat', 'reap') and a.id = r.id
    order by a.since desc limit 1
) a on true
left join lateral (
    select b.worker, b.since, w.host, w.pid
    from pgsched.left_behind b
    left join pgsched.workers w on w.id = b.worker
    where r.status = 'queued' and b.run_id = r.id and b.counts_until > now()
    order by b.since
    limit 1
) b on true
where r.id = %(run_id)s::bigint
