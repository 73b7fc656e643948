-- How the stored schedules differ from those that an application declares.
-- One row for each schedule that it declares, or that it owns and no longer declares. Only reads, and locks nothing. A
-- start and `pgsched check` share this one comparison.
-- A declared value is compared as a value of its column ('1:00:00' is an hour), and columns that the declaration does
-- not name are not compared. Values are JSON texts, durations are in seconds.
with declared as materialized (
    select d ->> 'name' as name, d - 'owner' as options from jsonb_array_elements(%(declared)s::jsonb) as d
),
stored as (
    select s as row from pgsched.schedules s
    where s.name in (select name from declared) or (s.owner = any(%(owners)s) and s.retired_at is null)
)
select coalesce(d.name, (s.row).name) as name, d.name is not null as declared, (s.row).id as id,
    (s.row).owner as owner, (s.row).timezone as timezone, (s.row).status as status,
    (s.row).retired_at is not null as retired,
    (s.row).status = 'paused'
        or (s.row).retired_at is not null and (s.row).paused_at is not null and (s.row).resumed_at is null as paused,
    (s.row).paused_until as paused_until,
    (s.row).next_run as next_run, (s.row).created_at as created_at, (s.row).run_count as run_count,
    coalesce(c.options, '{}') as options, coalesce(c.were, '{}') as were, coalesce(c.become, '{}') as become
from declared d
full join stored s on (s.row).name = d.name
left join lateral (
    select array_agg(key order by key) as options,
        array_agg((case when long then to_jsonb(extract(epoch from (was ->> key)::interval))
                   else was -> key end)::text order by key) as were,
        array_agg((case when long then to_jsonb(extract(epoch from (will ->> key)::interval))
                   else will -> key end)::text order by key) as become
    from (
        select key, key in ('grace', 'jitter', 'timeout', 'backoff', 'max_backoff') as long,
            to_jsonb(s.row) as was, to_jsonb(jsonb_populate_record(s.row, d.options)) as will
        from jsonb_object_keys(d.options) as key
        where jsonb_populate_record(s.row, jsonb_build_object(key, d.options -> key)) is distinct from s.row
    ) differing
) c on (s.row).id is not null and d.name is not null
order by 1
