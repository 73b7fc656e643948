-- A worker may be alive and yet unable to write ends or to listen: its row says so.
alter table pgsched.workers add column trouble text;
comment on column pgsched.workers.trouble is
    'What the database does not answer it, such as "ends not written for 40 s", as of seen_at. Null: nothing.';
