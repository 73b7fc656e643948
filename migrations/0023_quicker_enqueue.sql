-- The look for limits costs 9 µs, a third of an insert. A transaction looks once for an entrypoint without limits: the
-- trigger notes the transaction and the entrypoint in a setting of the session, and the next rows do not call it. Anybody
-- may write that setting. A job that stands in no line by it is sent to its line by the first claim that comes by.
create or replace function pgsched.run_queued() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    overlap_ text := 'allow';
begin
    if new.schedule_id is null
        and not exists (select from pgsched.limit_members m where m.entrypoint = new.entrypoint and m.limited) then
        perform set_config('pgsched_enqueue.unlimited', pg_current_xact_id()::text || new.entrypoint, false);
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
            new.schedule_id is null and current_setting('pgsched_enqueue.unlimited', true)
                is distinct from pg_current_xact_id()::text || new.entrypoint
            or new.schedule_id is not null and new.origin is not null
        )
    ) execute function pgsched.run_queued();
