-- Makes the row by whose lock the starts of an application take turns. Without a fingerprint nothing is in force yet. Waits
-- for another start that is making it.
insert into pgsched.declarations (app, fingerprint) values (%(app)s, '') on conflict do nothing
