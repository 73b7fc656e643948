-- The priorities of what is due or will be within the lookahead, highest first, for a pass that cannot take it all: of
-- schedules, of runs that wait at a gate, of queued runs. Of the first two the ten thousand that are due longest count.
with recursive levels (priority) as (
    (select priority from pgsched.runs where status = 'queued' and not gated order by priority desc limit 1)
    union all
    select (
        select r.priority from pgsched.runs r
        where r.status = 'queued' and not r.gated and r.priority < l.priority
        order by r.priority desc limit 1
    )
    from levels l
    where l.priority is not null
)
select priority from (
    select s.priority from pgsched.schedules s
    where s.status = 'active' and coalesce(s.next_run, '-infinity'::timestamptz) <= now() + %(lookahead)s
        and s.entrypoint = any(%(entrypoints)s) and (s.app is null or s.app = %(app)s)
        and s.id not in (select id from pgsched.resting where kind = 'schedule' and until > now())
    order by coalesce(s.next_run, '-infinity'::timestamptz) limit 10000
) schedules
union
select priority from (
    select r.priority from pgsched.runs r
    where r.status = 'queued' and r.gated and r.due_at <= now() + %(lookahead)s and r.entrypoint = any(%(entrypoints)s)
        and (r.app is null or r.app = %(app)s)
        and r.id not in (select id from pgsched.resting where kind = 'run' and until > now())
        and (r.limited_by is null or r.limited_by = %(app)s)
    order by r.due_at limit 10000
) gated
union
select l.priority from levels l
where exists (
    select from pgsched.runs r
    where r.status = 'queued' and not r.gated and r.priority = l.priority and r.due_at <= now() + %(lookahead)s
        and r.entrypoint = any(%(entrypoints)s) and (r.app is null or r.app = %(app)s)
        and r.id not in (select id from pgsched.resting where kind = 'run' and until > now())
)
order by 1 desc
