-- Waits until the transaction that inserted the token has ended, committed or not.
-- A statement of its own, so that later reads see that end.
insert into pgsched.transactions (token) values (%(token)s) on conflict do nothing returning token
