-- What a look or a change of one schedule reads must not grow with history.

-- Jobs have no schedule, and fire times are mostly claimed as they are made: next to nothing is written here.
create index runs_queued_of on pgsched.runs (schedule_id) where status = 'queued' and schedule_id is not null;
comment on index pgsched.runs_queued_of is 'The queued runs of a schedule, for its changes and for people.';
