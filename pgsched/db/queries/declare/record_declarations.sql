-- Puts a fingerprint in force for an application, and keeps the newest twenty that were in force before.
insert into pgsched.declarations as d (app, fingerprint)
values (%(app)s, %(fingerprint)s)
on conflict (app) do update set
    fingerprint = excluded.fingerprint, applied_at = clock_timestamp(),
    former = (array_remove(d.fingerprint || array_remove(d.former, excluded.fingerprint), ''))[1:20]
