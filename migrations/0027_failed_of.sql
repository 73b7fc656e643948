-- "What failed of this schedule, or of this entrypoint?" must not cost a search through history.

-- Written when a run fails or is cancelled for good. A run that succeeds writes nothing here.
create index runs_failed_of_schedule on pgsched.runs (schedule_id, status, finished_at)
    where status in ('failed', 'cancelled') and schedule_id is not null;
comment on index pgsched.runs_failed_of_schedule is 'The failed and cancelled runs of a schedule, for people.';
create index runs_failed_of_entrypoint on pgsched.runs (entrypoint, status, finished_at)
    where status in ('failed', 'cancelled');
comment on index pgsched.runs_failed_of_entrypoint is 'The failed and cancelled runs of an entrypoint, for people.';
