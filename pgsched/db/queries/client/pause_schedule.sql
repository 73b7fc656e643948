-- Pauses a schedule.
select pgsched.pause(%(name)s::text, %(note)s::text, %(until)s::timestamptz, %(backlog)s::boolean)
