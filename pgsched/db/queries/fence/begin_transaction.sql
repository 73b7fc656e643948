-- Names the session after the attempt for the length of its transaction, so that a reaper can end it.
-- Also inserts the claim's token: a session that inserts the same one waits for the transaction's end.
with mine as (insert into pgsched.transactions (token) values (%(token)s))
select pg_catalog.set_config('application_name', %(name)s, true)
