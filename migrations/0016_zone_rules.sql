-- The time zone rules by which a fire time was planned are part of its plan. With several tzdata releases in one fleet
-- the newest decides, and nothing comes twice or is left out when the rules change between two fire times.

alter table pgsched.zones add column release text;
comment on table pgsched.zones is
    'The time zones that schedules are read in, and the rules in force for each. Written by workers that know newer rules than the noted ones.';
comment on column pgsched.zones.release is 'The tzdata release that these rules were read from, such as 2026a. Null: unknown.';

alter table pgsched.schedules
    add column zone_rules text,
    add column next_wall timestamp,
    add column accounted_wall timestamp,
    add column moved_from pgsched.instant;
comment on column pgsched.schedules.zone_rules is
    'The rules by which next_run was planned, or is to be planned if it is null: the tzdata release, a colon, and the digest as in zones. Null for UTC. A worker whose rules differ and are not newer leaves the schedule alone.';
comment on column pgsched.schedules.next_wall is 'What the zone''s clock shows at next_run, by zone_rules.';
comment on column pgsched.schedules.accounted_wall is
    'What the zone''s clock showed at accounted_through, by the rules of that plan. Listed times up to here have had their turn, whatever rules come later.';
comment on column pgsched.schedules.moved_from is
    'The next_run of the rules before, from when newer ones are noticed until the next plan.';

alter table pgsched.workers
    add column tzdata text,
    add column tzdata_from text,
    add column tzdata_package text,
    add column withheld text[] not null default '{}';
comment on column pgsched.workers.tzdata is 'The tzdata release that it reads, such as 2026a. Null: unknown.';
comment on column pgsched.workers.tzdata_from is 'From where it reads it: a folder of the host, or the package tzdata.';
comment on column pgsched.workers.tzdata_package is 'The release of the package tzdata that is installed beside it.';
comment on column pgsched.workers.withheld is
    'The time zones whose schedules it leaves to others, because its rules for them are not the noted ones.';
