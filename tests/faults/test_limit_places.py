"""A worker that dies takes no place of an entrypoint's limits with it, and lends none."""


async def test_a_killed_workers_places_are_given_to_others_and_never_twice(daemons, db):
    daemons.app("""
from pgsched import Limits

@sc.entrypoint("job", limits=Limits(concurrency=2, concurrency_key="tenant", per_key=1))
async def job(run: Run, tenant: str):
    mark(run, "began")
    if run.attempt == 1 and not (FOLDER / "killed").exists():
        await asyncio.sleep(3600)
    await asyncio.sleep(0.05)
    mark(run, "ended")

@sc.entrypoint("other")
async def other(): ...
""")
    await db.until("select now() - pg_postmaster_start_time() > interval '3 s'", limit=10)
    first = await daemons.ready()
    await db.all("select pgsched.enqueue('job', jsonb_build_object('tenant', t)) from unnest('{a,b}'::text[]) t")
    await db.until("select count(*) = 2 from pgsched.marks")
    await daemons.ready()
    await db.all("select pgsched.enqueue('job', jsonb_build_object('tenant', t)) from unnest('{a,b,c,d}'::text[]) t")
    # A free job that is queued after them is done: both workers have looked, and found no place.
    await db.all("select pgsched.enqueue('other') from generate_series(1, 5)")
    await db.until("select count(*) = 5 from pgsched.runs where entrypoint = 'other' and status = 'succeeded'")
    assert await db.value("select count(*) from pgsched.marks") == 2
    daemons.open("killed")
    await first.kill()
    await db.until("select count(*) = 6 from pgsched.runs where entrypoint = 'job' and status = 'succeeded'")
    # Every beginning of the second worker, with what had begun there by then and not ended.
    most = await db.one("""
        with life as (
            select b.run_id, b.at as began, e.at as ended, r.args ->> 'tenant' as tenant
            from pgsched.marks b
            join pgsched.marks e on e.run_id = b.run_id and e.attempt = b.attempt and e.what = 'ended'
            join pgsched.runs r on r.id = b.run_id
            where b.what = 'began'
        )
        select max(n), max(of_tenant) from (
            select count(*) as n, count(*) filter (where o.tenant = l.tenant) as of_tenant
            from life l join life o on o.began <= l.began and o.ended > l.began group by l.run_id
        ) at_once
    """)
    assert most[0] <= 2 and most[1] == 1
    assert await db.value("select count(*) from pgsched.runs where entrypoint = 'job' and attempt = 2") == 2
