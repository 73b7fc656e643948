-- Waits until the transaction that added that token has come to its end, committed or not. A statement of its own: what
-- is read after it must see that end.
insert into pgsched.transactions (token) values (%(token)s) on conflict do nothing returning token
