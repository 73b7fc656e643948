-- Sets rows aside that the server refused to change.
-- If only a lock, or another error that passes, keeps a row from being written, it is tried again within seconds, then
-- less and less often, down to once a minute; other rows in 10 minutes. Returns the rows, and whether each had no entry
-- yet.
insert into pgsched.set_aside as a (kind, id, row_version, reason, until)
select %(kind)s, g.id, coalesce(r.xmin, s.xmin, l.xmin)::text, g.reason,
    now() + case when g.passing then interval '5 seconds' else interval '10 minutes' end
from unnest(%(ids)s::bigint[], %(reasons)s::text[], %(passing)s::boolean[]) as g (id, reason, passing)
left join pgsched.runs r on %(kind)s in ('run', 'end', 'beat', 'reap') and r.id = g.id
left join pgsched.schedules s on %(kind)s in ('schedule', 'replan') and s.id = g.id
left join pgsched.limits l on %(kind)s = 'limits' and l.id = g.id
where coalesce(r.id, s.id, l.id) is not null
order by g.id
on conflict (kind, id) do update
set row_version = excluded.row_version,
    reason = excluded.reason,
    since = case when a.row_version = excluded.row_version or a.kind in ('end', 'beat') then a.since
                 else excluded.since end,
    until = case
        when excluded.until > now() + interval '1 minute' then excluded.until
        when a.row_version <> excluded.row_version then excluded.until
        else now() + least(greatest(now() - a.since, interval '5 seconds'), '1 minute')
    end
returning a.id, a.since = now() as new
