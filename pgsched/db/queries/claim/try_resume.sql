-- Resumes schedules, in a transaction that is rolled back: shows whether the server lets them be resumed.
update pgsched.schedules s set status = 'active' where s.id = any(%(ids)s)
