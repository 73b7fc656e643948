-- The claimable runs that stand first in the lines of locked limits, most urgent first.
-- For each limit, no more runs than its concurrency and `rooms` allow (the rest of its rate, by its place in `gates`).
-- Each comes with the number of running runs of its limit and of its key. This is a statement of its own, after the
-- lock, so that it counts runs that another worker claimed meanwhile.
-- First it looks at the most urgent few of each entrypoint. Only if too many of these have to wait, and more stand
-- behind them, it walks line by line and priority by priority: ten thousand runs behind a busy key cost no more than
-- one, and ten thousand lines are not walked to fill a few places.
with recursive running as materialized (
    select r.gate, case when l.per_key is not null then pgsched.key_of(r.args, l.concurrency_key) end as key
    from pgsched.running_at_limits r
    join pgsched.limits l on l.gate = r.gate
    where r.gate = any(%(gates)s)
),
gates as materialized (
    select l.gate, l.concurrency_key, l.per_key,
        least(g.room, l.concurrency - coalesce(n.running, 0), %(limit)s) as room, coalesce(n.running, 0) as running
    from unnest(%(gates)s::text[], %(rooms)s::int[]) as g (gate, room)
    join pgsched.limits l on l.gate = g.gate
    left join (select r.gate, count(*)::int as running from running r group by 1) n on n.gate = g.gate
),
busy as materialized (
    select r.gate, r.key, count(*)::int as running from running r where r.key is not null group by 1, 2
),
-- The entrypoints of this worker at each limit.
members as materialized (
    select m.gate, m.app, m.entrypoint, g.room
    from gates g
    join pgsched.limit_members m on m.gate = g.gate
    where g.room > 0 and m.app = %(app)s and m.entrypoint = any(%(entrypoints)s)
),
levels (gate, app, entrypoint, rank) as (
    select m.gate, m.app, m.entrypoint, f.rank
    from members m
    cross join lateral (
        select -r.priority as rank from pgsched.runs r
        where r.status = 'queued' and r.gated and r.line is not null
            and r.limited_by = m.app and r.entrypoint = m.entrypoint
        order by -r.priority limit 1
    ) f
    union all
    select l.gate, l.app, l.entrypoint, f.rank
    from levels l
    cross join lateral (
        select -r.priority as rank from pgsched.runs r
        where r.status = 'queued' and r.gated and r.line is not null
            and r.limited_by = l.app and r.entrypoint = l.entrypoint and -r.priority > l.rank
        order by -r.priority limit 1
    ) f
),
urgent as materialized (
    select g.gate, u.*, count(*) over (partition by l.gate, l.entrypoint) >= 100 + g.room as cut
    from levels l
    join gates g on g.gate = l.gate
    cross join lateral (
        select r.id, r.schedule_id, r.entrypoint, r.line, r.priority, r.due_at,
            pgsched.key_of(r.args, g.concurrency_key) as key
        from pgsched.runs r
        left join pgsched.schedules s on s.id = r.schedule_id
        where r.status = 'queued' and r.gated and r.line is not null
            and r.limited_by = l.app and r.entrypoint = l.entrypoint and -r.priority = l.rank and r.due_at <= now()
            and (r.app is null or r.app = %(app)s)
            and r.id not in (select id from pgsched.unclaimable)
            and not (s.status is not distinct from 'paused' and r.attempt = 0 and r.origin is null)
        order by r.due_at, r.id
        limit 100 + g.room
    ) u
),
-- Runs that can be claimed, unless other runs of this list take the room of their key or schedule first.
open as materialized (
    select u.id, u.schedule_id, u.entrypoint, u.gate, u.key, u.priority, u.due_at, o.room,
        g.per_key - coalesce(b.running, 0) as left_,
        row_number() over (partition by u.gate, u.key order by u.priority desc, u.due_at, u.id) as place
    from urgent u
    join gates g on g.gate = u.gate
    left join busy b on b.gate = u.gate and b.key = u.key
    cross join lateral (
        select case when u.line like 's%%' then pgsched.overlap_room(u.schedule_id) end as room offset 0
    ) o
    where o.room is null or o.room > 0
),
free as materialized (
    select * from (
        select o.*,
            row_number() over (partition by o.gate, o.schedule_id order by o.priority desc, o.due_at, o.id) as turn
        from open o
        where o.left_ is null or o.place <= o.left_
    ) o
    where o.room is null or o.turn <= o.room
),
few (gate) as materialized (
    select g.gate
    from gates g
    where g.room > 0 and exists (select from urgent u where u.gate = g.gate and u.cut)
        and g.room > (select count(*) from free f where f.gate = g.gate)
),
lines (gate, app, entrypoint, line, rank) as (
    select m.gate, m.app, m.entrypoint, f.line, f.rank
    from few
    join members m on m.gate = few.gate
    cross join lateral (
        select r.line, -r.priority as rank from pgsched.runs r
        where r.status = 'queued' and r.gated and r.line is not null
            and r.limited_by = m.app and r.entrypoint = m.entrypoint
        order by r.line, -r.priority limit 1
    ) f
    union all
    select w.gate, w.app, w.entrypoint, f.line, f.rank
    from lines w
    cross join lateral (
        select r.line, -r.priority as rank from pgsched.runs r
        where r.status = 'queued' and r.gated and r.line is not null
            and r.limited_by = w.app and r.entrypoint = w.entrypoint and (r.line, -r.priority) > (w.line, w.rank)
        order by r.line, -r.priority limit 1
    ) f
),
found as (
    select f.id, f.schedule_id, f.entrypoint, f.gate, f.key, f.priority, f.due_at, f.left_, f.room
    from free f
    where f.gate not in (select gate from few)
    union all
    select h.id, h.schedule_id, h.entrypoint, w.gate, h.key, h.priority, h.due_at,
        g.per_key - coalesce(k.running, 0), o.room
    from lines w
    join gates g on g.gate = w.gate
    left join busy b on b.gate = w.gate and 'k' || b.key = w.line
    cross join lateral (
        select case when w.line like 's%%' then pgsched.overlap_room(substr(w.line, 2)::bigint) end as room offset 0
    ) o
    cross join lateral (
        select r.id, r.schedule_id, r.entrypoint, r.priority, r.due_at,
            pgsched.key_of(r.args, g.concurrency_key) as key
        from pgsched.runs r
        left join pgsched.schedules s on s.id = r.schedule_id
        where r.status = 'queued' and r.gated and r.line is not null
            -- As a range, so that only the index of lines has the requested order: the other one would read the whole
            -- entrypoint to find a line.
            and r.limited_by = w.app and r.entrypoint = w.entrypoint
            and (r.line, -r.priority) between (w.line, w.rank) and (w.line, w.rank) and r.due_at <= now()
            and (r.app is null or r.app = %(app)s)
            and r.id not in (select id from pgsched.unclaimable)
            and not (s.status is not distinct from 'paused' and r.attempt = 0 and r.origin is null)
        order by r.line, -r.priority, r.due_at, r.id
        limit greatest(0, least(g.room, g.per_key - coalesce(b.running, 0), o.room))
    ) h
    -- In a schedule's line, other runs of the same key may be in the way.
    left join busy k on k.gate = w.gate and k.key = h.key
),
keyed as (
    select f.*, row_number() over (partition by f.gate, f.key order by f.priority desc, f.due_at, f.id) as place
    from found f
),
turned as (
    select k.*, row_number() over (partition by k.gate, k.schedule_id order by k.priority desc, k.due_at, k.id) as turn
    from keyed k
    where k.left_ is null or k.place <= k.left_
),
first as (
    select t.id, t.schedule_id, t.entrypoint, t.gate, t.key, t.priority, t.due_at, g.running,
        row_number() over (partition by t.gate order by t.priority desc, t.due_at, t.id) <= g.room as fits
    from turned t
    join gates g on g.gate = t.gate
    where t.room is null or t.turn <= t.room
)
select f.id, f.schedule_id, f.entrypoint, f.gate, f.key, f.priority, f.due_at, f.running,
    coalesce(b.running, 0) as key_running,
    -- As stored: nothing is unpacked.
    (select pg_column_size(r.args) from pgsched.runs r where r.id = f.id) as size
from first f
left join busy b on b.gate = f.gate and b.key = f.key
where f.fits
order by f.priority desc, f.due_at, f.id
limit %(limit)s
