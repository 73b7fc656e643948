"""The model's own tables, and triggers that note each change of a schedule or run: who made it, in which transaction.

Notes of a transaction that is rolled back go with it. A session is known by its application_name: "pgsched …" is a
worker's, "model client" one of ours.
"""

from pgsched.db.statements.queries import in_schema

TABLES = """
create table pgsched.model_calls (
    id bigint generated always as identity primary key, run_id bigint not null, token bigint, attempt int not null,
    fire_time timestamptz, schedule_id bigint, entrypoint text not null, code text not null, worker uuid not null,
    pid int not null, key text not null, began timestamptz not null default clock_timestamp(), ended timestamptz,
    how text
);
create table pgsched.model_paid (run_id bigint not null, at timestamptz not null default clock_timestamp());
-- Workers whose calls may go on beside the next attempt: they were killed, or stood still too long to keep a claim.
create table pgsched.model_excuses (
    worker uuid not null, since timestamptz not null default clock_timestamp(), why text not null, entrypoint text
);
create table pgsched.model_trail (
    id bigint generated always as identity primary key, at timestamptz not null default clock_timestamp(),
    tx bigint not null default txid_current(), session text not null default current_setting('application_name'),
    relation text not null, op text not null, row_id bigint not null, old jsonb, new jsonb
);
create function pgsched.model_note() returns trigger
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    bulky constant text[] := array['result', 'errors', 'progress_done', 'progress_total', 'progressed_at'];
    was jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) - bulky end;
    becomes jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) - bulky end;
begin
    if length(coalesce(becomes, was) ->> 'args') > 500 then
        was := was - 'args';
        becomes := becomes - 'args';
    end if;
    insert into pgsched.model_trail (relation, op, row_id, old, new)
    values (tg_table_name, tg_op, (coalesce(becomes, was) ->> 'id')::bigint, was, becomes);
    return null;
end $$;
create trigger zz_model_added after insert or delete on pgsched.runs
    for each row execute function pgsched.model_note();
create trigger zz_model_changed after update on pgsched.runs
    for each row when ((old.status, old.worker, old.attempt, old.due_at, old.schedule_id, old.fire_time)
        is distinct from (new.status, new.worker, new.attempt, new.due_at, new.schedule_id, new.fire_time))
    execute function pgsched.model_note();
create trigger zz_model_schedule after insert or update or delete on pgsched.schedules
    for each row execute function pgsched.model_note();

-- Each run that ever was, as it was made.
create view pgsched.model_born as
select t.row_id as id, t.id as note, t.session, (t.new ->> 'schedule_id')::bigint as schedule_id,
    (t.new ->> 'fire_time')::timestamptz as fire_time, t.new ->> 'origin' as origin, t.new ->> 'status' as status,
    (t.new ->> 'due_at')::timestamptz as due_at, t.new ->> 'entrypoint' as entrypoint
from pgsched.model_trail t where t.relation = 'runs' and t.op = 'INSERT';
-- Each claim that ever was.
create view pgsched.model_claims as
select t.row_id as run_id, t.id as note, t.at, t.session, (t.new ->> 'worker')::uuid as worker,
    (t.new ->> 'attempt')::int as attempt, (t.new ->> 'token')::bigint as token, t.new ->> 'entrypoint' as entrypoint,
    (t.new ->> 'claimed_at')::timestamptz as claimed_at, t.new ->> 'app' as app
from pgsched.model_trail t
where t.relation = 'runs' and t.new ->> 'status' = 'running' and t.session like 'pgsched %'
    and (t.op = 'INSERT' or t.op = 'UPDATE' and t.old ->> 'status' <> 'running');
-- Each schedule that ever was, with what it was first.
create view pgsched.model_schedules as
select t.row_id as id, t.new ->> 'name' as name, t.new ->> 'owner' as owner, t.new ->> 'overlap' as overlap,
    (t.new ->> 'created_at')::timestamptz as created_at
from pgsched.model_trail t where t.relation = 'schedules' and t.op = 'INSERT';
-- Schedules whose next_run a client has set: their fire times may be told twice.
create view pgsched.model_moved as
select distinct t.row_id as id from pgsched.model_trail t
where t.relation = 'schedules' and t.op = 'UPDATE' and t.session not like 'pgsched %'
    and t.new ->> 'next_run' is not null and t.new ->> 'next_run' is distinct from t.old ->> 'next_run';
-- A call may go on beside the next attempt of its run.
create view pgsched.model_excused as
select c.id from pgsched.model_calls c
where exists (select from pgsched.model_excuses e
    where e.worker = c.worker and e.since <= coalesce(c.ended, 'infinity')
        and coalesce(e.entrypoint, c.entrypoint) = c.entrypoint);
"""

# A trigger of an application's, which refuses rows whose arguments say so: {"refuse": "insert"|"claim"|"end",
# "state": SQLSTATE}.
REFUSALS = """
create function pgsched.model_refuse() returns trigger
    language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if new.args ->> 'refuse' = (case when tg_op = 'INSERT' then 'insert' when new.status = 'running' then 'claim'
                                     when new.status in ('succeeded', 'failed') then 'end' end) then
        raise exception 'the model refuses this row' using errcode = new.args ->> 'state';
    end if;
    return new;
end $$;
create trigger model_refuses_new before insert on pgsched.runs
    for each row when (new.args ? 'refuse' and new.status <> 'skipped' and new.schedule_id is not null)
    execute function pgsched.model_refuse();
create trigger model_refuses before update on pgsched.runs
    for each row when (new.args ? 'refuse' and new.status is distinct from old.status)
    execute function pgsched.model_refuse();
"""


def statements(schema: str) -> list[bytes]:
    """What makes the tables and triggers in a schema."""
    return [in_schema(text.encode(), schema, parametrised=False) for text in (TABLES, REFUSALS)]
