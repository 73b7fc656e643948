-- What any language can do with plain SQL, all of it in one transaction: if any of it fails, nothing has happened, and
-- no worker has woken up. `psql "$PGSCHED_DSN" -f plain.sql`, with a worker of sync_app.py: it has the entrypoints.

begin;

-- A job for every order, whoever inserts it: the application, another one, somebody in psql.
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

-- Later, and before others. Then a batch, in which nothing is queued for what is in the queue: these are the same runs.
select pgsched.enqueue('remind', jsonb_build_object('order', max(id)), now() + interval '1 day', priority => 10)
from orders;
select pgsched.enqueue_many('invoice', array_agg(jsonb_build_object('order', id, 'email', email) order by id),
                            unique_keys => array_agg('order ' || id order by id))
from orders;

-- A schedule. Refusals have an SQLSTATE: PS404 there is none, PS409 it is there already or not in that state, PS422 a
-- value that is refused.
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
