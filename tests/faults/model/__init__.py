"""A random model of everybody who touches a pgsched database at once. READ plan.py FIRST, then burst.py.

plan         draws a burst of operations from a seed
jobs         the two applications that the workers serve; records each call of a function
workers      workers in threads and in processes
world        one schema, its workers, and its clients' connections
clients      the operations of clients
odd          rows that cannot be worked on
violence     the operations on workers
trail        notes each change of a row, who made it, and in which transaction
invariants   what must hold after a burst, in SQL
ledger       which fire times must be accounted for, in Python
story        what a finding shows
burst        runs one burst, brings the world to rest, checks it
soak         runs bursts for as long as `make model` says
"""
