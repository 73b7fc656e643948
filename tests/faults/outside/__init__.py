"""A soak of the outside world: one long life of daemons, clients, a pooler and two database hosts, under random faults.

Read soak.py first. Proxies stand between all of them (scene.py). faults.py breaks and heals something at random;
traffic.py enqueues, cancels and waits; application.py is the daemons' code and notes each call in a file; books.py
compares these notes with the database; gauges.py watches memory, descriptors, threads, tasks and sessions.
"""
