-- Announces a worker, at its start and again after its row was forgotten.
insert into pgsched.workers (id, app, host, pid, version, entrypoints, direct, heartbeat_interval, stall_timeout,
    fingerprint, machine, process_started, route, project, tzdata, tzdata_from, tzdata_package,
    schema_version)
values (%(worker)s, %(app)s, %(host)s, %(pid)s, %(version)s, %(entrypoints)s, %(direct)s,
        %(heartbeat_interval)s, %(stall_timeout)s, %(fingerprint)s, %(machine)s, %(process_started)s,
        %(route)s::text || ' ' || coalesce(host(inet_client_addr()), 'local'), %(project)s,
        %(tzdata)s, %(tzdata_from)s, %(tzdata_package)s,
        %(schema_version)s)
on conflict (id) do update set seen_at = clock_timestamp(), direct = excluded.direct, route = excluded.route
