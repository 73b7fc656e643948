-- Instants that no worker could read stopped all others' work, and a job could say of itself that it waits for an overlap
-- or in a line, and then waited for ever. Rows that are odd already stay: they are judged when they change.

alter table pgsched.schedules
    add constraint schedules_walls_check check (
        next_wall between '1900-01-01' and '2200-01-01' and accounted_wall between '1900-01-01' and '2200-01-01') not valid,
    add constraint schedules_planned_check check (planned_at between '1900-01-01Z' and '2200-01-01Z') not valid;
alter table pgsched.runs
    add constraint runs_instants_check check (
        created_at between '1900-01-01Z' and '2200-01-01Z' and committed_at between '1900-01-01Z' and '2200-01-01Z'
        and reported_at between '1900-01-01Z' and '2200-01-01Z'
        and progressed_at between '1900-01-01Z' and '2200-01-01Z') not valid;

create or replace function pgsched.run_queued() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    overlap_ text := 'allow';
begin
    if new.schedule_id is null
        and not exists (select from pgsched.limit_members m where m.entrypoint = new.entrypoint and m.limited) then
        perform set_config('pgsched_enqueue.unlimited', pg_current_xact_id()::text || new.entrypoint, false);
        -- Whatever the row says of itself.
        new.limited_by := null;
        new.line := null;
        new.gated := false;
        return new;
    end if;
    if new.schedule_id is not null then
        overlap_ := coalesce((select s.overlap from pgsched.schedules s where s.id = new.schedule_id), 'allow');
    end if;
    new.limited_by := pgsched.limiting_app(new.entrypoint, new.app);
    new.line := case when new.limited_by is not null
        then pgsched.line_for(new.entrypoint, new.args, new.schedule_id, overlap_, new.limited_by) end;
    new.gated := overlap_ <> 'allow' or new.line is not null;
    return new;
end $$;

drop trigger run_queued on pgsched.runs;
create trigger run_queued before insert on pgsched.runs
    for each row when (
        new.status = 'queued' and (
            new.schedule_id is null and (new.gated or new.line is not null or new.limited_by is not null
                or current_setting('pgsched_enqueue.unlimited', true)
                    is distinct from pg_current_xact_id()::text || new.entrypoint)
            or new.schedule_id is not null and new.origin is not null
        )
    ) execute function pgsched.run_queued();
