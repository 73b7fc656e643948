-- Resumes a paused schedule.
select pgsched.resume(%(name)s::text, %(backlog)s::boolean)
