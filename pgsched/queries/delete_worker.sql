-- Says that a worker is gone, and forgets those that were not seen for a day.
delete from pgsched.workers where id = %(worker)s or seen_at < now() - interval '1 day'
