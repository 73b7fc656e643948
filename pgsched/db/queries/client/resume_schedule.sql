-- Lets a paused schedule go on.
select pgsched.resume(%(name)s::text, %(backlog)s::boolean)
