-- Puts the rules of a time zone in force, if those in force are still the ones that were seen (null: none).
-- The row's lock makes workers take turns: the second one finds other rules than it saw, and must look again.
insert into pgsched.zones (name, digest, release) values (%(name)s, %(digest)s, %(release)s)
on conflict (name) do update
    set digest = excluded.digest, release = excluded.release, noticed_at = clock_timestamp()
    where zones.digest = %(seen)s::text
returning name
