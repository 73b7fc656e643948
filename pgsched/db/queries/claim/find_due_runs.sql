-- Locks the queued runs that a claim may take next: the first ones of each entrypoint and kind.
-- Locked, so that a refusal is noted with the row version that was tried. Leaves out runs that are unclaimable now.
-- Each kind has an index of its own.
select f.id
from unnest(%(entrypoints)s::text[]) as e (entrypoint)
cross join lateral (
    select * from (
        select r.id from pgsched.runs r
        where r.status = 'queued' and not r.gated and r.entrypoint = e.entrypoint
            and (r.app is null or r.app = %(app)s) and r.due_at <= now() + %(lookahead)s
            and r.id not in (select id from pgsched.unclaimable)
        order by r.priority desc, r.due_at, r.id
        limit %(limit)s
        for no key update skip locked
    ) queued
    union all
    select * from (
        select r.id from pgsched.runs r
        where r.status = 'queued' and r.gated and r.line is null and r.entrypoint = e.entrypoint
            and (r.app is null or r.app = %(app)s) and r.due_at <= now() + %(lookahead)s
            and r.id not in (select id from pgsched.unclaimable)
        order by r.due_at
        limit %(limit)s
        for no key update skip locked
    ) waiting
    union all
    select * from (
        select r.id from pgsched.runs r
        where r.status = 'queued' and r.gated and r.line is not null and r.entrypoint = e.entrypoint
            and (r.app is null or r.app = %(app)s) and r.due_at <= now() + %(lookahead)s
            and r.id not in (select id from pgsched.unclaimable)
        order by -r.priority, r.due_at
        limit %(limit)s
        for no key update skip locked
    ) in_line
) f
order by f.id
