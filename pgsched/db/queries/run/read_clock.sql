-- The database's clock, for callers that decide nothing with it.
select clock_timestamp()
