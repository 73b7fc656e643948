-- Serves workers built for schema version 4 or later.
-- So does the first line of every later migration. In a rolling deploy, workers compare it with their own version.
alter table pgsched.migrations add column serves int;
comment on column pgsched.migrations.serves is
    'The oldest workers that can go on after this migration, by the schema version that they were built for. Null for versions before 5.';

-- A worker may be alive and yet unable to write ends or to listen: its row says so.
alter table pgsched.workers add column trouble text, add column schema_version int;
comment on column pgsched.workers.trouble is
    'What the database does not answer it, such as "ends not written for 40 s", as of seen_at. Null: nothing.';
comment on column pgsched.workers.schema_version is
    'The version of the schema that its pgsched was built for. Null: 4.';
