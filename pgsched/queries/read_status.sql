-- Where a run is in its life, by its primary key: asked again and again by who waits for its end.
select status from pgsched.runs where id = %(run_id)s::bigint
