-- Forgets schedules that were removed a day ago, and threads whose workers died a day ago.
-- Nobody needs these rows any more, and no other statement may ever reach them.
with removed as (
    delete from pgsched.removed where removed_at < now() - interval '1 day'
)
delete from pgsched.left_behind where counts_until < now() - interval '1 day'
