-- The runs that stand first in the lines of locked limits and could be claimed, most urgent first; of each entrypoint
-- no more than `rooms` (what its rate leaves, by its place in `entrypoints`) and its concurrency allow, with how many
-- are running of the entrypoint and of the run's key. A statement of its own, after the lock, so that what another
-- worker claimed meanwhile is counted. Lines and priorities are walked one by one: ten thousand runs behind a busy key
-- cost no more than one.
with recursive gates as materialized (
    select l.entrypoint, l.concurrency_key, l.per_key,
        least(g.room, l.concurrency - coalesce(n.running, 0), %(limit)s) as room, coalesce(n.running, 0) as running
    from unnest(%(entrypoints)s::text[], %(rooms)s::int[]) as g (entrypoint, room)
    join pgsched.limits l on l.entrypoint = g.entrypoint
    left join (
        select r.entrypoint, count(*)::int as running from pgsched.runs r where r.status = 'running' group by 1
    ) n on n.entrypoint = g.entrypoint
),
busy as materialized (
    select g.entrypoint, pgsched.key_of(r.args, g.concurrency_key) as key, count(*)::int as running
    from gates g
    join pgsched.runs r on r.status = 'running' and r.entrypoint = g.entrypoint
    where g.per_key is not null
    group by 1, 2
),
lines (entrypoint, line, rank) as (
    select g.entrypoint, f.line, f.rank
    from gates g
    cross join lateral (
        select r.line, -r.priority as rank from pgsched.runs r
        where r.status = 'queued' and r.gated and r.line is not null and r.entrypoint = g.entrypoint
        order by r.line, -r.priority limit 1
    ) f
    where g.room > 0
    union all
    select w.entrypoint, f.line, f.rank
    from lines w
    cross join lateral (
        select r.line, -r.priority as rank from pgsched.runs r
        where r.status = 'queued' and r.gated and r.line is not null and r.entrypoint = w.entrypoint
            and (r.line, -r.priority) > (w.line, w.rank)
        order by r.line, -r.priority limit 1
    ) f
),
first as (
    select h.id, h.schedule_id, h.entrypoint, h.key, h.priority, h.due_at, g.room, g.running, g.per_key,
        row_number() over (partition by h.entrypoint order by h.priority desc, h.due_at, h.id) as place
    from lines w
    join gates g on g.entrypoint = w.entrypoint
    left join busy b on b.entrypoint = w.entrypoint and 'k' || b.key = w.line
    cross join lateral (
        select r.id, r.schedule_id, r.entrypoint, r.priority, r.due_at,
            pgsched.key_of(r.args, g.concurrency_key) as key
        from pgsched.runs r
        left join pgsched.schedules s on s.id = r.schedule_id
        where r.status = 'queued' and r.gated and r.line is not null
            and r.entrypoint = w.entrypoint and r.line = w.line and -r.priority = w.rank and r.due_at <= now()
            and not (s.status is not distinct from 'paused' and r.attempt = 0 and r.origin is null)
        order by r.due_at, r.id
        limit greatest(0, least(g.room, g.per_key - coalesce(b.running, 0)))
    ) h
    -- Of a schedule's line: others of its key, or of the schedule, may be in the way.
    where (%(priority)s::int is null or w.rank = -%(priority)s)
        and (g.per_key is null or not exists (
            select from busy o where o.entrypoint = h.entrypoint and o.key = h.key and o.running >= g.per_key))
        and (w.line not like 's%%' or exists (
            select from pgsched.schedules s
            where s.id = h.schedule_id and (s.overlap = 'allow' or (
                select count(*) from pgsched.runs r where r.status = 'running' and r.schedule_id = s.id
            ) < case when s.overlap ~ '^[0-9]+$' then s.overlap::int else 1 end)
        ) or not exists (select from pgsched.schedules s where s.id = h.schedule_id))
)
select f.id, f.schedule_id, f.entrypoint, f.key, f.priority, f.due_at, f.running,
    coalesce(b.running, 0) as key_running
from first f
left join busy b on b.entrypoint = f.entrypoint and b.key = f.key
where f.place <= f.room
order by f.priority desc, f.due_at, f.id
limit %(limit)s
