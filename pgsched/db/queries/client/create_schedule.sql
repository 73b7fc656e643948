-- Makes a schedule and returns its id.
select pgsched.create_schedule(
    %(name)s::text, %(entrypoint)s::text, %(expression)s::text,
    %(args)s::jsonb, %(timezone)s::text, %(options)s::jsonb
)
