-- What a removed schedule had claimed was read from how far its fire times were decided, and a new timing begins that
-- anew: if a schedule was retimed, removed and made again while a claim of it was held, a fire time could run twice. So it
-- could after a truncation. Now the claims themselves are asked.

create or replace function pgsched.schedule_removed() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    first timestamptz;
    accounted timestamptz;
    claimed timestamptz;
begin
    with gone as (
        delete from pgsched.runs r
        where r.id = any (array(
                select q.id from pgsched.runs q
                where q.schedule_id = old.id and q.status = 'queued' and q.origin is null and q.attempt = 0
                    and q.started_at is null and q.stops is null and q.errors = '[]' and q.due_at > clock_timestamp()))
            and r.status = 'queued' and r.attempt = 0
        returning r.fire_time
    )
    select min(fire_time) into first from gone;
    update pgsched.runs r
    set status = 'cancelled', reason = 'schedule removed', finished_at = clock_timestamp()
    where r.id = any (array(select q.id from pgsched.runs q where q.schedule_id = old.id and q.status = 'queued'))
        and r.status = 'queued';
    -- A claim that has not begun is withdrawn now. If it begins before its holder hears of that, a new schedule of this
    -- name must not run it again. Jitter may put it off past its fire time. Read last: above we waited for workers that
    -- were claiming.
    select max(r.fire_time) into claimed
    from pgsched.runs r
    where r.status = 'running' and r.schedule_id = old.id and r.schedule_version is not null and r.started_at is null;
    accounted := greatest(least(old.accounted_through, first - interval '1 microsecond'), claimed);
    if accounted >= clock_timestamp() or claimed is not null then
        delete from pgsched.removed d where d.removed_at < clock_timestamp() - interval '1 day';
        insert into pgsched.removed (schedule_id, name, accounted_through) values (old.id, old.name, accounted)
        on conflict (schedule_id) do nothing;
    end if;
    perform pg_notify(tg_table_schema, '');
    return null;
end $$;

create or replace function pgsched.schedules_truncated() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    update pgsched.runs r
    set status = 'cancelled', reason = 'schedule removed', finished_at = clock_timestamp()
    where r.status = 'queued' and r.schedule_id is not null;
    insert into pgsched.removed (schedule_id, name, accounted_through)
    select s.id, s.name, max(r.fire_time)
    from pgsched.runs r join pgsched.schedules s on s.id = r.schedule_id
    where r.status = 'running' and r.schedule_version is not null and r.started_at is null
    group by s.id
    on conflict (schedule_id) do nothing;
    perform pg_notify(tg_table_schema, '');
    return null;
end $$;

-- Before: afterwards nobody knows the names.
drop trigger schedules_truncated on pgsched.schedules;
create trigger schedules_truncated before truncate on pgsched.schedules
    for each statement execute function pgsched.schedules_truncated();
