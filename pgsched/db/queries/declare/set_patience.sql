-- Limits how long each statement of this transaction may take and wait for a lock.
-- Also limits how long the transaction may be idle.
select pg_catalog.set_config('statement_timeout', %(limit)s, true),
    pg_catalog.set_config('lock_timeout', %(limit)s, true),
    pg_catalog.set_config('idle_in_transaction_session_timeout', %(limit)s, true)
