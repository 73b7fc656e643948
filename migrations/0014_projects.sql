-- Which code base a worker runs, so that a start does not take the schedules of another one's; and a worker whose row is
-- deleted hears of it.

alter table pgsched.workers add column project text;
comment on column pgsched.workers.project is
    'The project that its code belongs to: the name in its pyproject.toml, of its distribution or of its folder. Null: unknown.';

create or replace view pgsched.live_workers as
    select w.id, w.app, w.fingerprint, w.entrypoints, w.host, w.pid, w.project
    from pgsched.workers w
    where w.seen_at > now() - interval '3 minutes'
        or exists (select from pg_catalog.pg_stat_activity a where a.application_name = 'pgsched ' || w.id);

create function pgsched.worker_forgotten() returns trigger
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
begin
    -- A worker that says goodbye deletes its own row over a session of its own, and wakes nobody.
    if tg_op = 'TRUNCATE' then
        perform pg_notify(tg_table_schema, '');
    elsif exists (
        select from gone g join pg_stat_activity a on a.application_name = 'pgsched ' || g.id
        where a.application_name <> current_setting('application_name')
    ) then
        perform pg_notify(tg_table_schema, '');
    end if;
    return null;
end $$;
comment on function pgsched.worker_forgotten() is
    'The row of a worker that has sessions was deleted: the wake-up has it look, and it writes its row again.';
create trigger worker_forgotten after delete on pgsched.workers
    referencing old table as gone for each statement execute function pgsched.worker_forgotten();
create trigger workers_forgotten after truncate on pgsched.workers
    for each statement execute function pgsched.worker_forgotten();
