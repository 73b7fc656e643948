-- Notes the rules of a time zone. The row's lock makes workers that start at once take turns.
insert into pgsched.zones (name, digest) values (%(name)s, %(digest)s)
on conflict (name) do update set digest = excluded.digest, noticed_at = clock_timestamp()
