-- The runs that stand first in the lines of locked limits and could be claimed, most urgent first; of each entrypoint
-- no more than `rooms` (what its rate leaves, by its place in `entrypoints`) and its concurrency allow, with how many
-- are running of the entrypoint and of the run's key. A statement of its own, after the lock, so that what another
-- worker claimed meanwhile is counted.
-- First it looks at the most urgent few of each entrypoint. Only where too many of these have to wait, and more stand
-- behind them, it walks line by line and priority by priority: ten thousand runs behind a busy key cost no more than
-- one, and ten thousand lines are not walked to fill a few places.
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
levels (entrypoint, rank) as (
    select g.entrypoint, f.rank
    from gates g
    cross join lateral (
        select -r.priority as rank from pgsched.runs r
        where r.status = 'queued' and r.gated and r.line is not null and r.entrypoint = g.entrypoint
        order by -r.priority limit 1
    ) f
    where g.room > 0
    union all
    select l.entrypoint, f.rank
    from levels l
    cross join lateral (
        select -r.priority as rank from pgsched.runs r
        where r.status = 'queued' and r.gated and r.line is not null and r.entrypoint = l.entrypoint
            and -r.priority > l.rank
        order by -r.priority limit 1
    ) f
),
urgent as materialized (
    select u.*, count(*) over (partition by u.entrypoint) >= 100 + g.room as cut
    from levels l
    join gates g on g.entrypoint = l.entrypoint
    cross join lateral (
        select r.id, r.schedule_id, r.entrypoint, r.line, r.priority, r.due_at,
            pgsched.key_of(r.args, g.concurrency_key) as key
        from pgsched.runs r
        left join pgsched.schedules s on s.id = r.schedule_id
        where r.status = 'queued' and r.gated and r.line is not null
            and r.entrypoint = l.entrypoint and -r.priority = l.rank and r.due_at <= now()
            and (r.app is null or r.app = %(app)s)
            and not (s.status is not distinct from 'paused' and r.attempt = 0 and r.origin is null)
        order by r.due_at, r.id
        limit 100 + g.room
    ) u
    where %(priority)s::int is null or l.rank = -%(priority)s
),
-- Those among them that nothing is in the way of, but for each other.
free as materialized (
    select u.id, u.schedule_id, u.entrypoint, u.key, u.priority, u.due_at, u.cut, g.per_key - coalesce(b.running, 0) as left_,
        row_number() over (partition by u.entrypoint, u.key order by u.priority desc, u.due_at, u.id) as place
    from urgent u
    join gates g on g.entrypoint = u.entrypoint
    left join busy b on b.entrypoint = u.entrypoint and b.key = u.key
    where (u.line not like 's%%' or pgsched.has_room(u.schedule_id))
),
few (entrypoint) as materialized (
    select g.entrypoint
    from gates g
    where g.room > 0 and exists (select from urgent u where u.entrypoint = g.entrypoint and u.cut)
        and g.room > (
            select count(*) from free f
            where f.entrypoint = g.entrypoint and (f.left_ is null or f.place <= f.left_)
        )
),
lines (entrypoint, line, rank) as (
    select g.entrypoint, f.line, f.rank
    from few g
    cross join lateral (
        select r.line, -r.priority as rank from pgsched.runs r
        where r.status = 'queued' and r.gated and r.line is not null and r.entrypoint = g.entrypoint
        order by r.line, -r.priority limit 1
    ) f
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
found as (
    select f.id, f.schedule_id, f.entrypoint, f.key, f.priority, f.due_at
    from free f
    where f.entrypoint not in (select entrypoint from few) and (f.left_ is null or f.place <= f.left_)
    union all
    select h.id, h.schedule_id, h.entrypoint, h.key, h.priority, h.due_at
    from lines w
    join gates g on g.entrypoint = w.entrypoint
    left join busy b on b.entrypoint = w.entrypoint and 'k' || b.key = w.line
    cross join lateral (
        select r.id, r.schedule_id, r.entrypoint, r.priority, r.due_at,
            pgsched.key_of(r.args, g.concurrency_key) as key
        from pgsched.runs r
        left join pgsched.schedules s on s.id = r.schedule_id
        where r.status = 'queued' and r.gated and r.line is not null
            -- As a range, so that only the index of lines has the order that is asked for: the other one would read
            -- the whole entrypoint to find a line.
            and r.entrypoint = w.entrypoint
            and (r.line, -r.priority) between (w.line, w.rank) and (w.line, w.rank) and r.due_at <= now()
            and (r.app is null or r.app = %(app)s)
            and not (s.status is not distinct from 'paused' and r.attempt = 0 and r.origin is null)
        order by r.line, -r.priority, r.due_at, r.id
        limit greatest(0, least(g.room, g.per_key - coalesce(b.running, 0)))
    ) h
    -- Of a schedule's line: others of its key, or of the schedule, may be in the way.
    where (%(priority)s::int is null or w.rank = -%(priority)s)
        and (g.per_key is null or not exists (
            select from busy o where o.entrypoint = h.entrypoint and o.key = h.key and o.running >= g.per_key))
        and (w.line not like 's%%' or pgsched.has_room(h.schedule_id))
),
first as (
    select f.*, g.room, g.running,
        row_number() over (partition by f.entrypoint order by f.priority desc, f.due_at, f.id) as place
    from found f
    join gates g on g.entrypoint = f.entrypoint
)
select f.id, f.schedule_id, f.entrypoint, f.key, f.priority, f.due_at, f.running,
    coalesce(b.running, 0) as key_running
from first f
left join busy b on b.entrypoint = f.entrypoint and b.key = f.key
where f.place <= f.room
order by f.priority desc, f.due_at, f.id
limit %(limit)s
