"""Jobs that would take the daemon with them: killers, quitters, and what no column can hold."""

import asyncio

import pytest
from daemons import LIMIT


async def test_a_job_that_kills_its_worker_fails_for_good_after_its_attempts(daemons, db):
    daemons.app("""
@sc.schedule("killer", at(PAST), name="killer")
async def killer(run: Run):
    mark(run, "killer")
    os.kill(os.getpid(), signal.SIGKILL)

@sc.schedule("tick", "* * * * * *", name="tick", retry=Retry(attempts=20, backoff=timedelta(0)))
async def tick(run: Run):
    mark(run, "tick")
""")
    started = 0

    async def supervise():
        nonlocal started
        while True:
            daemon = daemons.start()
            started += 1
            await daemon.exit_code(limit=3600)

    supervisor = asyncio.create_task(supervise())
    try:
        await db.until("select status = 'failed' from pgsched.runs where entrypoint = 'killer'", limit=60)
        await db.until("""
            select count(*) >= 2 from pgsched.runs r
            where r.entrypoint = 'tick' and r.status = 'succeeded'
                and r.fire_time > (select finished_at from pgsched.runs where entrypoint = 'killer')
        """)
    finally:
        supervisor.cancel()
        await asyncio.wait([supervisor])
    attempt, errors = await db.one("select attempt, errors from pgsched.runs where entrypoint = 'killer'")
    assert attempt == 3
    assert [(e["attempt"], e["type"]) for e in errors] == [(1, "WorkerLost"), (2, "WorkerLost"), (3, "WorkerLost")]
    assert await db.all("select attempt from pgsched.marks where what = 'killer' order by id") == [(1,), (2,), (3,)]
    assert started == 4
    assert await db.value("select last_status from pgsched.schedules where name = 'killer'") == "failed"
    assert await daemons.all[-1].stop() == 0


RAISES = {
    "exit_async": ("async def f():\n    sys.exit(3)", "SystemExit", "3"),
    "exit_sync": ("def f():\n    sys.exit(3)", "SystemExit", "3"),
    "interrupt_async": ("async def f():\n    raise KeyboardInterrupt", "KeyboardInterrupt", ""),
    "interrupt_sync": ("def f():\n    raise KeyboardInterrupt", "KeyboardInterrupt", ""),
    "generator_exit": ("async def f():\n    raise GeneratorExit", "GeneratorExit", ""),
    "base": ("class Mine(BaseException): ...\nasync def f():\n    raise Mine('x')", "app.Mine", "x"),
    "stop_iteration": ("def f():\n    raise StopIteration(1)", "RuntimeError", None),
    "cancelled": ("async def f():\n    raise asyncio.CancelledError", "CancelledError", None),
    "nul": (r"""async def f():
    raise ValueError("a\0b\ud800c\x1b")""", "ValueError", "a\\x00b\\ud800c\x1b"),
    "nul_sync": (r"""def f():
    raise ValueError("a\0b\ud800c")""", "ValueError", "a\\x00b\\ud800c"),
    "wicked": (
        "class Wicked(Exception):\n    def __str__(self):\n        raise OSError\nasync def f():\n    raise Wicked",
        "app.Wicked",
        None,
    ),
    "group": (
        "async def f():\n    async with asyncio.TaskGroup() as group:\n        group.create_task(fails())\n"
        "async def fails():\n    raise ValueError('inside')",
        "ExceptionGroup",
        None,
    ),
    "endless": ("async def f():\n    await f()", "RecursionError", None),
}  # fmt: skip
RETURNS = {
    "set": "{1, 2}",
    "object": "object()",
    "nan": "float('nan')",
    "nul": "{'a': 'x\\0y'}",
    "surrogate": "['\\ud800']",
    "surrogate_key": "{'\\udfff': 1}",
    "deep": "__import__('functools').reduce(lambda inner, _: [inner], range(100_000), 1)",
    "huge": "10 ** 5000",
    "long": "'x' * 1_000_000",
    "circle": "(lambda x: (x.append(x), x)[1])([])",
    "lie": "'\\\\u0000 only looks like it'",
    "number": "1e308",
}


async def test_whatever_a_job_raises_or_returns_ends_its_run_and_not_the_daemon(daemons, db):
    source = []
    for name, (code, _, _) in RAISES.items():
        source += [code, f"sc.entrypoint('raise {name}', retry=Retry(attempts=1))(f)"]
    for name, value in RETURNS.items():
        source += [f"async def g():\n    return {value}", f"sc.entrypoint('return {name}')(g)"]
    daemons.app("\n".join(source))
    daemon = await daemons.ready()
    names = [f"raise {n}" for n in RAISES] + [f"return {n}" for n in RETURNS]
    for name in names:
        await db.all("select pgsched.enqueue(%s)", name)
    await db.until("select count(*) = %s from pgsched.runs where status in ('failed', 'succeeded')", len(names))
    assert await daemon.stop() == 0
    for name, (_, kind, message) in RAISES.items():
        status, errors = await db.one("select status, errors from pgsched.runs where entrypoint = %s", f"raise {name}")
        assert (status, len(errors)) == ("failed", 1), name
        assert errors[0]["type"] == kind, name
        assert message in (None, errors[0]["message"]), name
    for name in RETURNS:
        status, result, reason = await db.one(
            "select status, result, reason from pgsched.runs where entrypoint = %s", f"return {name}"
        )
        assert status == "succeeded", name
        if name == "lie":
            assert result == "\\u0000 only looks like it"
        elif name == "number":
            assert float(result) == 1e308
        elif name == "huge":
            assert result is None or result == 10**5000
        else:
            assert result is None and reason, name
    assert not [e for e in daemon.events() if e["event"] == "text"], "a traceback on standard error"


@pytest.mark.parametrize(
    "how",
    [
        "async with asyncio.TaskGroup() as group:\n        group.create_task(leave())",
        "await asyncio.gather(leave())",
        "await asyncio.create_task(leave())",
        "asyncio.get_running_loop().call_soon(sys.exit, 3)\n    await asyncio.sleep(0.5)",
    ],
    ids=["group", "gather", "task", "callback"],
)
async def test_a_job_that_exits_in_a_task_of_its_own_does_not_end_the_daemon(daemons, db, how):
    daemons.app(f"""
async def leave():
    sys.exit(3)

@sc.entrypoint("quitter", retry=Retry(attempts=1))
async def quitter():
    {how}

@sc.entrypoint("good")
async def good(): ...
""")
    daemon = await daemons.ready()
    await db.all("select pgsched.enqueue('quitter')")
    await db.until(
        "select status in ('failed', 'succeeded') from pgsched.runs where entrypoint = 'quitter'", limit=LIMIT / 3
    )
    await db.all("select pgsched.enqueue('good')")
    await db.until("select status = 'succeeded' from pgsched.runs where entrypoint = 'good'")
    assert await daemon.stop() == 0
