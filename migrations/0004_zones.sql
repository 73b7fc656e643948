-- The rules of the time zones by which next_run was planned, so that new rules are noticed.

create table pgsched.zones (
    name       text primary key,
    digest     text not null,
    noticed_at timestamptz not null default clock_timestamp()
);
comment on table pgsched.zones is
    'The time zones that schedules are read in. Written by workers at their start, where the rules they know differ.';
comment on column pgsched.zones.digest is 'A hash over the zone''s changes of UTC offset from 2020 to 2050.';
comment on column pgsched.zones.noticed_at is 'Since when these rules are the ones that next_run is planned by.';
