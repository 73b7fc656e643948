-- The runs that `pgsched health` names as waiting: of each kind of wait, the run that has been due longest.
-- It has been due for two minutes at least, though a live worker could run it. It comes with the executions that hold
-- the thing it waits for, as far as the database knows: how many, the longest ones, and how many of them do not stop.
-- Without payloads.
-- Kinds: place (of a worker), overlap (of its schedule), limits, key (its concurrency key), rate, itself (its own
-- earlier attempt).
with recursive live as materialized (select id, app, entrypoints from pgsched.live_workers),
levels (priority) as (
    (select priority from pgsched.runs where status = 'queued' and not gated order by priority desc limit 1)
    union all
    select (
        select r.priority from pgsched.runs r
        where r.status = 'queued' and not r.gated and r.priority < l.priority
        order by r.priority desc limit 1
    )
    from levels l
    where l.priority is not null
),
-- Each by an index of its own, and only its first row: a backlog costs no more than one run.
first as (
    (select r.id, null::text as gate
     from levels l
     cross join lateral (
        select r.id, r.due_at from pgsched.runs r
        where r.status = 'queued' and not r.gated and r.priority = l.priority
            and r.due_at < now() - interval '2 minutes' and r.id not in (select id from pgsched.unclaimable)
            and exists (select from live w where r.entrypoint = any(w.entrypoints) and (r.app is null or r.app = w.app))
        order by r.due_at, r.id limit 1
     ) r
     where l.priority is not null
     order by r.due_at, r.id limit 1)
    union all
    (select r.id, null from pgsched.runs r
     where r.status = 'queued' and r.gated and r.line is null
        and r.due_at < now() - interval '2 minutes' and r.id not in (select id from pgsched.unclaimable)
        and exists (select from live w where r.entrypoint = any(w.entrypoints) and (r.app is null or r.app = w.app))
        and (r.attempt > 0 or r.origin is not null or not exists (
            select from pgsched.schedules s where s.id = r.schedule_id and s.status = 'paused'
        ))
     order by r.due_at limit 1)
    union all
    -- For each limit: one may let its runs wait as intended, while another is held by a run that hangs.
    select r.id, m.gate
    from pgsched.limit_members m
    cross join lateral (
        select r.id from pgsched.runs r
        where r.status = 'queued' and r.gated and r.line is not null
            and r.limited_by = m.app and r.entrypoint = m.entrypoint
            and r.due_at < now() - interval '2 minutes' and r.id not in (select id from pgsched.unclaimable)
            and (r.attempt > 0 or r.origin is not null or not exists (
                select from pgsched.schedules s where s.id = r.schedule_id and s.status = 'paused'
            ))
        order by -r.priority, r.due_at, r.id limit 1
    ) r
    where exists (select from live w where m.entrypoint = any(w.entrypoints) and w.app = m.app)
    union all
    select b.run_id, null from pgsched.left_behind b where b.counts_until > now()
),
waiting as materialized (
    select r.id, r.app, r.entrypoint, r.schedule_id, r.due_at, f.gate,
        case when o.itself then 'itself' when o.room <= 0 then 'overlap' when f.gate is null then 'place'
            when l.concurrency <= o.running then 'limits' when l.per_key <= o.key_running then 'key'
            when l.starts <= o.started then 'rate' else 'place' end as kind,
        case when l.per_key is not null then pgsched.key_of(r.args, l.concurrency_key) end as key
    from first f
    join pgsched.runs r on r.id = f.id
    left join pgsched.limits l on l.gate = f.gate
    cross join lateral (
        select exists (select from pgsched.left_behind b where b.run_id = r.id and b.counts_until > now()) as itself,
            case when r.gated and (f.gate is null or r.line like 's%%')
                then pgsched.overlap_room(r.schedule_id) end as room,
            (select count(*) from pgsched.running_at_limits n where n.gate = f.gate) as running,
            case when l.per_key is not null then (
                select count(*) from pgsched.running_at_limits n
                where n.gate = f.gate
                    and pgsched.key_of(n.args, l.concurrency_key) = pgsched.key_of(r.args, l.concurrency_key)
            ) end as key_running,
            (select sum(s.count) from unnest(l.started_at, l.started) as s (at, count)
             where s.at > now() - l.period) as started
    ) o
    where r.status = 'queued' and r.due_at < now() - interval '2 minutes'
),
chosen as materialized (
    select distinct on (w.kind) w.* from waiting w order by w.kind, w.due_at, w.id
),
holding as materialized (
    select r.id, r.schedule_id, r.worker, coalesce(r.started_at, r.claimed_at) as since,
        coalesce(r.cancel_requested_at < now() - interval '1 minute'
            or r.started_at + r.timeout < now() - interval '1 minute', false) as hangs
    from pgsched.runs r
    where r.status = 'running' and exists (select from chosen)
    union all
    select b.run_id, b.schedule_id, b.worker, b.since, true from pgsched.left_behind b where b.counts_until > now()
)
select c.kind, c.id as run_id, c.entrypoint, c.due_at, now() - c.due_at as waited, h.number as holding, h.hanging, h.ids,
    (select count(*) from live w where c.entrypoint = any(w.entrypoints) and (c.app is null or c.app = w.app)) as workers
from chosen c
cross join lateral (
    select count(*) as number, count(*) filter (where h.hangs) as hanging,
        (array_agg(h.id order by h.hangs desc, h.since))[1:5] as ids
    from holding h
    where case c.kind
        when 'itself' then h.id = c.id and h.hangs
        when 'overlap' then h.schedule_id = c.schedule_id
        when 'place' then exists (
            select from live w
            where w.id = h.worker and c.entrypoint = any(w.entrypoints) and (c.app is null or c.app = w.app))
        when 'rate' then false
        else exists (
            select from pgsched.running_at_limits n
            join pgsched.limits l on l.gate = n.gate
            where n.gate = c.gate and n.id = h.id
                and (c.kind = 'limits' or pgsched.key_of(n.args, l.concurrency_key) = c.key))
    end
) h
order by c.due_at
