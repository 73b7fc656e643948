-- Names the session after the attempt for as long as its transaction lasts, so that a reaper can end it.
select pg_catalog.set_config('application_name', %(name)s, true)
