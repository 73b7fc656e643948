-- Which version of an application's declared schedules counts, so that an old process that starts beside a newer
-- one does not set them back; and what a retired schedule has to remember to come back as it was.

create table pgsched.declarations (
    app         text primary key,
    fingerprint text not null,
    applied_at  timestamptz not null default clock_timestamp(),
    former      text[] not null default '{}'
);
comment on table pgsched.declarations is
    'One row an application: which set of declared schedules is in force. Written by workers, when they start with another one.';
comment on column pgsched.declarations.app is 'The application''s name, as the owner of its schedules has it after code:.';
comment on column pgsched.declarations.fingerprint is 'A hash over the declared schedules that are in force.';
comment on column pgsched.declarations.applied_at is 'When these came into force.';
comment on column pgsched.declarations.former is
    'The fingerprints that were in force before, newest first, at most 20: a worker that starts with one of them is older, or rolled back.';

alter table pgsched.workers add column fingerprint text;
comment on column pgsched.workers.fingerprint is
    'A hash over the schedules that its code declares. Null: of a version that knew none.';

alter table pgsched.schedules add column paused_note text;
comment on column pgsched.schedules.paused_note is
    'The note of its pause, kept while it is retired: what was paused comes back paused.';

create view pgsched.live_workers as
    select w.id, w.app, w.fingerprint, w.entrypoints
    from pgsched.workers w
    where w.seen_at > now() - interval '3 minutes'
        or exists (select from pg_catalog.pg_stat_activity a where a.application_name = 'pgsched ' || w.id);
comment on view pgsched.live_workers is
    'The workers that were seen within three minutes, or that the server sees a session of.';
