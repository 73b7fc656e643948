-- Runs a schedule now and returns the run's id.
select pgsched.trigger(%(name)s::text)
