-- The data of `pgsched health`, in one row.
-- A schedule with a live run may wait for it and is not overdue.
with live as materialized (select id, app, entrypoints from pgsched.live_workers),
zoned as (select w.* from pgsched.workers w join live on live.id = w.id),
overdue as (
    select s.name from pgsched.schedules s
    where s.status = 'active'
        and coalesce(s.next_run, '-infinity'::timestamptz) < now() - interval '2 minutes'
        and (s.next_run is not null or s.updated_at < now() - interval '2 minutes')
        and exists (
            select from live where s.entrypoint = any(live.entrypoints) and (s.app is null or s.app = live.app)
        )
        and not exists (select from pgsched.runs r where r.schedule_id = s.id and r.status = 'queued' and r.gated)
        and not exists (select from pgsched.runs r where r.schedule_id = s.id and r.status = 'running')
),
-- The priorities of queued jobs, from one entry of the index to the next lower one: there are few of them.
priorities as (
    with recursive p as (
        (select r.priority from pgsched.runs r where r.status = 'queued' and not r.gated
         order by r.priority desc limit 1)
        union all
        select (
            select r.priority from pgsched.runs r where r.status = 'queued' and not r.gated and r.priority < p.priority
            order by r.priority desc limit 1
        ) from p where p.priority is not null
    )
    select priority from p where priority is not null
),
-- Since when work has been due, by application and entrypoint. In parts, because each has an index of its own;
-- combined, they would read all of history. Of the jobs of a priority it reads only those that a worker would take
-- next: a job that no worker can run stays among them. So it reads neither jobs that are not due nor a backlog that is
-- worked off. Without the limit, the planner may scan the whole table for each priority.
due as (
    select u.app, u.entrypoint, min(u.due_at) as since
    from (
        select s.app, s.entrypoint, coalesce(s.next_run, s.updated_at) as due_at from pgsched.schedules s
        where s.status = 'active' and coalesce(s.next_run, s.updated_at) < now() - interval '2 minutes'
        union all
        select q.app, q.entrypoint, q.due_at
        from priorities p
        cross join lateral (
            select r.app, r.entrypoint, r.due_at from pgsched.runs r
            where r.status = 'queued' and not r.gated and r.priority = p.priority
                and r.due_at < now() - interval '2 minutes'
            order by r.due_at
            limit 1000
        ) q
        union all
        select r.app, r.entrypoint, r.due_at from pgsched.runs r
        where r.status = 'queued' and r.gated and r.due_at < now() - interval '2 minutes'
    ) u
    where exists (select from live)
    group by u.app, u.entrypoint
),
-- Due work that no worker can run: the last worker of its application has gone, or never came. A backlog is many runs
-- of few entrypoints, so it is grouped before each group is compared with the workers.
unserved as (
    select d.app, d.entrypoint, d.since from due d
    where not exists (
        select from live where d.entrypoint = any(live.entrypoints) and (d.app is null or d.app = live.app)
    )
),
-- Applications with active declared schedules and no worker left: stopped for good, or renamed.
deserted as (
    select d.app from pgsched.declarations d
    where exists (select from live) and not exists (select from live where live.app = d.app)
        and exists (select from pgsched.schedules s where s.app = d.app and s.status = 'active')
),
silent as (
    select id from pgsched.runs where status = 'running' and heartbeat_at < now() - interval '2 minutes'
),
-- Runs that do not stop: their workers ask them again and again, and can do no more.
stubborn as (
    select id from pgsched.runs
    where status = 'running' and (cancel_requested_at < now() - interval '1 minute'
        or started_at + timeout < now() - interval '1 minute')
),
invalid as (select name from pgsched.schedules where status = 'invalid'),
-- Rows that the database refuses to change.
refused as (
    select r.since, r.id, case r.kind
            when 'schedule' then 'schedule ' || coalesce((select s.name from pgsched.schedules s where s.id = r.id), '')
            when 'replan' then 'the new time zone rules of schedule '
                || coalesce((select s.name from pgsched.schedules s where s.id = r.id), '')
            when 'limits' then 'the starts at the limits of '
                || coalesce((select coalesce(l.entrypoint, l.shared) from pgsched.limits l where l.id = r.id), '')
            when 'run' then 'the claim of run ' || r.id
            else 'the ' || r.kind || ' of run ' || r.id
        end || ': ' || r.reason as what
    from pgsched.resting r
)
select
    (select count(*) from live) as workers,
    (select count(*) from zoned where trouble is not null) as troubled,
    array(
        select host || ' (pid ' || pid || '): ' || trouble from zoned where trouble is not null order by 1 limit 5
    ) as troubles,
    (select count(*) from silent) as silent,
    array(select id from silent order by id limit 5) as silent_ids,
    (select count(*) from stubborn) as stubborn,
    array(select id from stubborn order by id limit 5) as stubborn_ids,
    (select count(*) from overdue) as overdue,
    array(select name from overdue order by name limit 5) as overdue_names,
    (select count(*) from unserved) as unserved,
    array(
        select entrypoint || coalesce(' of ' || app, '') from unserved order by since, entrypoint limit 5
    ) as unserved_names,
    (select count(*) from deserted) as deserted,
    array(select app from deserted order by app limit 5) as deserted_names,
    array(select distinct z from zoned cross join lateral unnest(zoned.withheld) z order by z limit 5) as withheld_zones,
    array(select distinct host from zoned where withheld <> '{}' order by host limit 5) as withheld_hosts,
    -- Releases are a year and letters, so they sort as texts.
    array(
        select distinct host || ' (' || tzdata || ' in ' || tzdata_from || ', package ' || tzdata_package || ')'
        from zoned where tzdata < tzdata_package collate "C" order by 1 limit 5
    ) as outdated_hosts,
    array(
        select distinct coalesce(tzdata, 'unknown') || ' from ' || tzdata_from from zoned
        where tzdata_from is not null order by 1 limit 5
    ) as tzdata,
    (select count(*) from invalid) as invalid,
    array(select name from invalid order by name limit 5) as invalid_names,
    (select count(*) from refused) as refused,
    array(select what from refused order by since, id limit 5) as refused_rows,
    (select count(*) from pgsched.left_behind where counts_until > now()) as left_behind,
    array(
        select run_id || ' (' || entrypoint || ')' from pgsched.left_behind
        where counts_until > now() order by since limit 5
    ) as left_behind_runs
