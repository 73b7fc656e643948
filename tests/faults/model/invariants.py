"""What must hold after a burst, in SQL: each statement returns the rows that break one invariant.

Columns named run_id and schedule_id say whose history is shown with a finding. Calls of workers that were killed, or
stood still too long to keep a claim, are left out if they may rightly go on beside others (model_excused).
"""

from model.jobs import CAPPED, KEYED, POOLED, RATED, RATED_PERIOD

_CAPS = ", ".join(f"('{code}', {most})" for code, most in CAPPED.items())


def _most_at_once(spans: str, keys: str, most: str) -> str:
    """Rows of more than `most` spans at one instant. spans: a query of keys, began, ended, call."""
    mine, theirs = (", ".join(f"{table}.{key}" for key in keys.split(", ")) for table in "sl")
    return f"""
        with spans as ({spans}),
        steps as (
            select {keys}, began as at, 1 as step, call from spans
            union all select {keys}, ended, -1, call from spans
        ),
        levels as (
            select {keys}, at, step, call, sum(step) over (partition by {keys} order by at, step, call) as level
            from steps
        )
        select l.*, array(
            select c.run_id from spans s join pgsched.model_calls c on c.id = s.call
            where ({mine}) = ({theirs}) and s.began <= l.at and s.ended > l.at order by c.id
        ) as runs
        from levels l where step = 1 and level > {most}
    """


# A call whose end nobody saw has ended with its worker, and one whose transaction is committed no longer counts.
_CALLS = """
    select {keys}, c.began, least(coalesce(c.ended, 'infinity'), (
        select r.committed_at from pgsched.runs r where r.id = c.run_id)) as ended, c.id as call
    from pgsched.model_calls c {joins}
    where not exists (select from pgsched.model_excused e where e.id = c.id) and {only}
"""

INVARIANTS: dict[str, str] = {
    "no fire time of a schedule's name is called under two runs": """
        select s.name, c.fire_time, array_agg(distinct c.run_id) as runs, min(c.schedule_id) as schedule_id,
            min(c.run_id) as run_id
        from pgsched.model_calls c
        join pgsched.model_born b on b.id = c.run_id and b.origin is null
        -- A schedule that is made after its one instant runs at once, although another one of its name had it, too.
        join pgsched.model_schedules s on s.id = c.schedule_id and s.created_at < c.fire_time
        group by s.name, c.fire_time having count(distinct c.run_id) > 1
    """,
    "every run that was called has a row": """
        select c.run_id, c.schedule_id, c.fire_time, c.began, c.worker, c.how from pgsched.model_calls c
        where not exists (select from pgsched.runs r where r.id = c.run_id)
    """,
    "a fire time that is recorded as skipped was never called": """
        select c.run_id, c.schedule_id, c.fire_time, k.id as skip, k.reason, k.detail
        from pgsched.model_calls c
        join pgsched.model_born b on b.id = c.run_id and b.origin is null
        join pgsched.runs k on k.schedule_id = c.schedule_id and k.status = 'skipped'
            and c.fire_time in (k.fire_time, k.skipped_through)
        where not exists (select from pgsched.model_moved m where m.id = c.schedule_id)
            -- If its worker died and its schedule had changed, nobody knows whether it was called: the row says so.
            and not exists (select from pgsched.runs r where r.id = c.run_id and r.withdrawn_at is not null)
    """,
    "no claim is called twice": """
        select run_id, token, worker, count(*) from pgsched.model_calls where token is not null
        group by run_id, token, worker having count(*) > 1
    """,
    "each call has a claim": """
        select c.run_id, c.schedule_id, c.attempt, c.token, c.worker, c.began from pgsched.model_calls c
        where not exists (
            select from pgsched.model_claims k
            where k.run_id = c.run_id and k.worker = c.worker and k.attempt = c.attempt
                and k.token is not distinct from c.token
        )
    """,
    "no two calls of a run go on at once": """
        select a.run_id, a.schedule_id, a.id as first, b.id as second, a.worker, b.worker as other, a.began, a.ended,
            b.began as second_began
        from pgsched.model_calls a
        join pgsched.model_calls b on b.run_id = a.run_id and b.id > a.id and b.began < coalesce(a.ended, 'infinity')
        -- A client may retry a run whose thread hangs.
        where a.entrypoint <> 'hung' and not exists (select from pgsched.model_excused e where e.id in (a.id, b.id))
    """,
    "no function is called before its fire time": """
        select run_id, schedule_id, fire_time, began from pgsched.model_calls where began < fire_time
    """,
    "no job is called before it is due": """
        select c.run_id, b.due_at, c.began from pgsched.model_calls c join pgsched.model_born b on b.id = c.run_id
        where c.began < b.due_at
            -- A client that retries a cancelled run asks for it now, though jitter would have put it off.
            and not exists (
                select from pgsched.model_trail t
                where t.relation = 'runs' and t.op = 'UPDATE' and t.row_id = c.run_id
                    and (t.new ->> 'due_at')::timestamptz < (t.old ->> 'due_at')::timestamptz
            )
    """,
    "no run has more attempts than its limit": """
        select id as run_id, schedule_id, attempt, max_attempts from pgsched.runs
        where attempt > max_attempts and attempt < 1000000
    """,
    "what has succeeded was called under its last claim": """
        select r.id as run_id, r.schedule_id, r.attempt from pgsched.runs r
        join pgsched.model_born b on b.id = r.id and b.status <> 'succeeded'
        where r.status = 'succeeded' and not exists (
            select from pgsched.model_calls c
            where c.run_id = r.id and c.attempt = r.attempt and c.worker = r.worker
        )
    """,
    "nobody but the holder ends a claim, except a reaper": """
        select t.row_id as run_id, t.session, t.old ->> 'worker' as holder, t.old ->> 'status' as was,
            t.new ->> 'status' as becomes
        from pgsched.model_trail t
        where t.relation = 'runs' and t.op = 'UPDATE' and t.session ~ '^pgsched [0-9a-f-]{36}$'
            and t.old ->> 'status' = 'running' and t.new ->> 'status' <> 'running'
            and t.new ->> 'worker' is not null and t.session <> 'pgsched ' || (t.new ->> 'worker')
    """,
    "a claim names the worker that made it": """
        select k.run_id, k.session, k.worker from pgsched.model_claims k
        where k.session ~ '^pgsched [0-9a-f-]{36}$' and k.session <> 'pgsched ' || k.worker
    """,
    "tokens only grow and never repeat": """
        select run_id, token, earlier from (
            select run_id, token, lag(token) over (partition by run_id order by note) as earlier,
                count(*) over (partition by token) as uses
            from pgsched.model_claims where token is not null
        ) k where token <= earlier or uses > 1
    """,
    "no schedule has more of its runs at once than its overlap allows": _most_at_once(
        _CALLS.format(
            keys="c.schedule_id, case when s.overlap ~ '^[0-9]+$' then s.overlap::int else 1 end as most",
            joins="join pgsched.model_schedules s on s.id = c.schedule_id and s.overlap <> 'allow'",
            only="not exists (select from pgsched.model_trail t where t.relation = 'schedules' and t.op = 'UPDATE' "
            "and t.row_id = c.schedule_id and t.new ->> 'overlap' <> t.old ->> 'overlap')",
        ),
        "schedule_id, most",
        "most",
    ),
    "no entrypoint has more runs at once than its limit": _most_at_once(
        _CALLS.format(
            keys="c.code, m.most",
            joins=f"join (values {_CAPS}) as m (code, most) on m.code = c.code",
            only="c.entrypoint = 'capped'",
        ),
        "code, most",
        "most",
    ),
    "no limit that applications share has more runs at once": _most_at_once(
        _CALLS.format(keys="c.entrypoint", joins="", only="c.entrypoint = 'pooled'"), "entrypoint", str(POOLED)
    ),
    "no key has more runs at once than its limit": _most_at_once(
        _CALLS.format(keys="c.code, c.key", joins="", only="c.entrypoint = 'keyed'"), "code, key", str(KEYED)
    ),
    "no entrypoint starts more runs in a period than its limit": f"""
        select run_id, worker_code, claimed_at, earlier from (
            select k.run_id, c.code as worker_code, k.claimed_at,
                lag(k.claimed_at, {RATED}) over (partition by c.code order by k.claimed_at) as earlier
            from pgsched.model_claims k
            join (select distinct worker, code from pgsched.model_calls) c on c.worker = k.worker
            where k.entrypoint = 'rated'
        ) k where claimed_at < earlier + interval '{RATED_PERIOD.total_seconds() - 0.05} s'
    """,
    "the runs of a declared schedule are called by the code that declares it": """
        select c.run_id, c.schedule_id, s.name, s.owner, c.code from pgsched.model_calls c
        join pgsched.model_schedules s on s.id = c.schedule_id
        where s.owner like 'code:model-%' and s.owner <> 'code:model-' || c.code
    """,
    "a run that names an application is called by its code": """
        select c.run_id, c.schedule_id, k.app, c.code from pgsched.model_calls c
        join pgsched.model_claims k on k.run_id = c.run_id and k.token = c.token
        where k.app like 'model-%' and k.app <> 'model-' || c.code
    """,
    "next_run only grows, unless a client changes it or a claim is given back": """
        select t.row_id as schedule_id, t.old ->> 'next_run' as before, t.new ->> 'next_run' as after, t.session
        from pgsched.model_trail t
        where t.relation = 'schedules' and t.op = 'UPDATE' and t.session like 'pgsched %'
            and (t.new ->> 'next_run')::timestamptz < (t.old ->> 'next_run')::timestamptz
            and not exists (
                select from pgsched.model_trail r
                where r.tx = t.tx and r.relation = 'runs' and (r.old ->> 'schedule_id')::bigint = t.row_id
                    and (r.op = 'DELETE' or r.new ->> 'status' = 'cancelled')
            )
    """,
    "no schedule makes more runs than its max_runs": """
        select s.id as schedule_id, s.max_runs, count(*) from pgsched.schedules s
        join pgsched.runs r on r.schedule_id = s.id and r.status <> 'skipped' and r.origin is null
        join pgsched.model_born b on b.id = r.id and b.session like 'pgsched %'
        where s.max_runs is not null and to_jsonb(r) ->> 'withdrawn_at' is null
            and not exists (select from pgsched.model_trail t where t.relation = 'schedules' and t.row_id = s.id
                and t.new ->> 'max_runs' is distinct from s.max_runs::text)
        group by s.id having count(*) > s.max_runs
    """,
    "a transaction of a run is committed once, if and only if the run has succeeded": """
        select r.id as run_id, r.status, count(p.run_id) from pgsched.runs r
        left join pgsched.model_paid p on p.run_id = r.id
        where r.entrypoint = 'pays' and (r.status = 'succeeded' or p.run_id is not null)
        group by r.id having count(p.run_id) <> (r.status = 'succeeded')::int
    """,
    "no row is paid for whose run is gone": """
        select p.run_id from pgsched.model_paid p where not exists (select from pgsched.runs r where r.id = p.run_id)
    """,
}

# Runs and schedules that can rightly stay as they are.
_ODD = "(x.args ? 'refuse' or x.entrypoint = 'nowhere')"
LEFT_RUNS = f"""
    select r.id as run_id, r.schedule_id, r.entrypoint, r.status, r.due_at, r.attempt, r.worker, r.heartbeat_at,
        r.gated, r.cancel_requested_at, s.name, s.status as schedule_status
    from (select * from pgsched.runs x where x.status in ('queued', 'running') and not {_ODD}) r
    left join pgsched.schedules s on s.id = r.schedule_id
    where not exists (
        select from pgsched.model_born b where b.id = r.id and b.session not like 'pgsched %'
            and (r.attempt > 1000000 or b.status = 'running')
    )
"""
LEFT_SCHEDULES = f"""
    select x.id as schedule_id, x.name, x.status, x.next_run, x.entrypoint from pgsched.schedules x
    where x.status = 'active' and not {_ODD}
"""
LEFT_DUE = f"{LEFT_SCHEDULES} and coalesce(x.next_run, '-infinity') <= clock_timestamp()"
LEFT_SILENT = """
    select id as run_id, worker, heartbeat_at from pgsched.runs
    where status = 'running' and heartbeat_at < clock_timestamp() - make_interval(secs => {seconds})
"""
