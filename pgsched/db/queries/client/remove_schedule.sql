-- Removes a schedule.
select pgsched.remove(%(name)s::text)
