-- The database's clock, for who decides nothing but wants to know the time that counts.
select clock_timestamp()
