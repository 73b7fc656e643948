-- Finishes the schedules that an application declared once and declares no more; their history stays. Returns them
-- as they were just before: what was due by then and not claimed, next_run tells.
with going as materialized (
    select id, name, status, next_run from pgsched.schedules
    where owner = %(owner)s and retired_at is null and not (name = any(%(declared)s))
    order by id
    for no key update
)
update pgsched.schedules s
set status = 'finished', note = 'no longer declared by its application', retired_at = clock_timestamp(),
    next_run = null,
    -- What was paused comes back paused.
    paused_at = case when going.status = 'paused' then coalesce(s.paused_at, clock_timestamp()) else s.paused_at end,
    paused_note = case when going.status = 'paused' then s.note end
from going
where s.id = going.id
returning s.id, s.name, going.status, going.next_run
