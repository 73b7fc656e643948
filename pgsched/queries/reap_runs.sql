-- Takes silent claims away: only the very claim that was seen, with the very beat that was seen. A beat or a
-- finish that comes in between wins, and one that holds the row just now is left in peace.
with verdicts as (
    select * from unnest(%(ids)s::bigint[], %(attempts)s::int[], %(beats)s::timestamptz[], %(statuses)s::text[],
                         %(delays)s::float8[], %(messages)s::text[])
        as v (id, attempt, heartbeat_at, status, delay, message)
),
stalled as materialized (
    select r.id
    from verdicts v
    join pgsched.runs r on r.id = v.id and r.attempt = v.attempt and r.heartbeat_at = v.heartbeat_at
    where r.status = 'running'
    order by r.id
    for no key update of r skip locked
)
update pgsched.runs r
set status = v.status,
    worker = null,
    due_at = case when v.status = 'queued' then clock_timestamp() + v.delay * interval '1 second' else r.due_at end,
    finished_at = case when v.status <> 'queued' then clock_timestamp() end,
    errors = (case when jsonb_array_length(r.errors) >= 20 then r.errors - 0 else r.errors end)
        || jsonb_build_object('attempt', r.attempt, 'at', clock_timestamp(), 'type', 'WorkerLost',
                              'message', v.message, 'traceback', '')
from verdicts v
join stalled on stalled.id = v.id
where r.id = v.id
returning r.id
