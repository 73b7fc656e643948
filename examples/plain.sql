-- pgsched from any language, with plain SQL. All of it is in one transaction: if any of it fails, nothing has happened,
-- and no worker has woken up. Run `psql "$PGSCHED_DSN" -f plain.sql`, with a worker of sync_app.py for the entrypoints.

begin;

-- A job for every order, inserted by the application, by another one, or in psql.
create table if not exists orders (id bigint generated always as identity primary key, email text not null);

create or replace function order_placed() returns trigger language plpgsql as $$
begin
    perform pgsched.enqueue('invoice', jsonb_build_object('order', new.id, 'email', new.email),
                            unique_key => 'order ' || new.id);
    return null;
end $$;
drop trigger if exists order_placed on orders;
create trigger order_placed after insert on orders for each row execute function order_placed();

insert into orders (email) values ('carla@example.org'), ('dan@example.org');

-- A job for later, with a higher priority than others. Then a batch: jobs whose key is in the queue are not queued
-- again, and the ids are those of the queued runs.
select pgsched.enqueue('remind', jsonb_build_object('order', max(id)), now() + interval '1 day', priority => 10)
from orders;
select pgsched.enqueue_many('invoice', array_agg(jsonb_build_object('order', id, 'email', email) order by id),
                            unique_keys => array_agg('order ' || id order by id))
from orders;

-- A schedule. Errors have an SQLSTATE: PS404 if it does not exist, PS409 if it exists already or is in the wrong state,
-- PS422 for a value that is not allowed.
do $$
begin
    perform pgsched.create_schedule('nightly', 'report', '0 3 * * *', '{"format": "csv"}', 'Europe/Berlin',
                                    '{"overlap": "queue", "timeout": "5 minutes"}');
exception when sqlstate 'PS409' then
    raise notice '%', sqlerrm;
end $$;
select pgsched.alter('nightly', '{"expression": "0 4 * * *", "grace": "1 hour", "timeout": null}');
select pgsched.pause('nightly', 'no reports this week', now() + interval '7 days');
select pgsched.trigger('nightly');  -- runs once now, paused or not

commit;

select id, entrypoint, args, status, due_at from pgsched.runs order by id desc limit 5;
