-- A job of an entrypoint without limits is the common one: it costs the insert one look and nothing else.
create or replace function pgsched.run_queued() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    overlap_ text := 'allow';
begin
    if new.schedule_id is null
        and not exists (select from pgsched.limit_members m where m.entrypoint = new.entrypoint and m.limited) then
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
