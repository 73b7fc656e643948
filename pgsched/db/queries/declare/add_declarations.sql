-- Inserts the row whose lock makes the starts of an application take turns.
-- Without a fingerprint nothing is in force yet. Waits for another start that is inserting the row.
insert into pgsched.declarations (app, fingerprint) values (%(app)s, '') on conflict do nothing
