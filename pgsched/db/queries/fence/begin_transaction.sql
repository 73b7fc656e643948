-- Names the session after the attempt for as long as its transaction lasts, so that a reaper can end it, and adds its token,
-- by which one can wait for the transaction's end.
with mine as (insert into pgsched.transactions (token) values (%(token)s))
select pg_catalog.set_config('application_name', %(name)s, true)
