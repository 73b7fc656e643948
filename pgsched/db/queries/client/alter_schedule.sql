-- Changes the options of a schedule that `changes` names (its keys are columns), and no others.
select pgsched.alter(%(name)s::text, %(changes)s::jsonb)
