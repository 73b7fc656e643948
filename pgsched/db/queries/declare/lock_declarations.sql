-- Makes the starts of one application take turns until the transaction ends, even behind a pooler.
-- A row, because any role that can connect can hold an advisory lock.
select app from pgsched.declarations where app = %(app)s for update
