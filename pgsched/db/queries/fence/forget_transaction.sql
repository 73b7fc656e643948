-- Deletes the row that the wait for a transaction's end has left.
delete from pgsched.transactions where token = %(token)s returning token
