-- Draws tokens that nobody uses, until the next one is higher than all that this worker has held.
-- An asynchronous standby that was promoted may lack the last claims, and would give their run ids and tokens out again.
-- An end of a lost claim could then land on a new one of the same worker.
with one as materialized (select pgsched.next_token() as token)
select greatest(one.token, (
    select max(pgsched.next_token()) from generate_series(1, least(%(held)s - one.token, %(most)s))
))
from one
