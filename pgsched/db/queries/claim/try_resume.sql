-- Resumes schedules, in a transaction that is rolled back, to see if the server allows it.
update pgsched.schedules s set status = 'active' where s.id = any(%(ids)s)
