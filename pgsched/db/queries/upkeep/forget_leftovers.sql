-- Forgets what nobody needs any more and no other statement may ever come by: of schedules that were removed a day ago, and
-- of threads whose workers died a day ago.
with removed as (
    delete from pgsched.removed where removed_at < now() - interval '1 day'
)
delete from pgsched.left_behind where counts_until < now() - interval '1 day'
