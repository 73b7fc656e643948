-- Changes of a schedule what `changes` names (its keys are columns) and leaves the rest as it is.
select pgsched.alter(%(name)s::text, %(changes)s::jsonb)
