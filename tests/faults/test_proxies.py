"""The proxy does to connections what its commands say: to all, to one of them, and to new ones."""

import asyncio
import threading

import psycopg
import pytest
from support.links import Way
from support.proxies import Door, Proxy, ProxyThread, black_hole
from support.workers import until, working

from pgsched import Scheduler

SOON = 0.5  # seconds; a connection that passes bytes on answers within a small part of that


async def one(connection):
    return await (await connection.execute("select 1")).fetchone() == (1,)


async def silent(work):
    """Whether the work has not ended SOON; returns its task, too."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait([task], timeout=SOON)
    return not done, task


async def lost(task):
    """The work ends with an error of its connection."""
    with pytest.raises(psycopg.OperationalError):
        async with asyncio.timeout(20):
            await task
    return True


@pytest.fixture
async def proxy(dsn):
    async with Proxy(dsn) as proxy:
        yield proxy


@pytest.fixture
async def connect(proxy):
    """Connects through the proxy, with an application_name."""
    made = []

    async def connect(name="test"):
        given = {"application_name": name, "connect_timeout": 20}
        made.append(await psycopg.AsyncConnection.connect(proxy.dsn, autocommit=True, **given))
        return made[-1]

    yield connect
    for connection in made:
        await connection.close()


async def test_a_frozen_connection_does_not_answer_and_a_new_one_does(proxy, connect):
    old = await connect()
    assert await one(old)
    proxy.freeze()
    hangs, question = await silent(one(old))
    assert hangs
    hangs, hello = await silent(connect("late"))
    assert hangs, "while it is frozen, new connections are, too"
    proxy.thaw(old=False)
    new = await connect()
    assert await one(new)
    assert not question.done() and not hello.done(), "those that were frozen stay so"
    proxy.thaw()
    assert await question and await one(await hello)


@pytest.mark.parametrize("way", [Way.UP, Way.DOWN], ids=lambda way: way.name)
async def test_one_frozen_direction(proxy, connect, db, way):
    old = await connect()
    proxy.links[0].freeze(way)
    hangs, task = await silent(old.execute("create table arrived ()"))
    assert hangs
    arrived = "select to_regclass('arrived') is not null"
    if way is Way.DOWN:
        await db.until(arrived)  # the statement passes, and its answer does not
        assert not task.done()
    else:
        assert not await db.value(arrived)
    proxy.links[0].thaw(way)
    await task
    assert await db.value(arrived)


async def test_a_freeze_that_keeps_nothing_swallows_the_statement(proxy, connect, db):
    old = await connect()
    proxy.links[0].freeze(Way.UP, keep=False)
    hangs, task = await silent(old.execute("create table arrived ()"))
    assert hangs
    proxy.thaw()
    hangs, _ = await silent(task)
    assert hangs and not await db.value("select to_regclass('arrived') is not null")
    proxy.links[0].reset()
    assert await lost(task)


async def test_one_connection_is_chosen_by_its_name_its_order_or_its_process(proxy, connect):
    first, second, third = [await connect(name) for name in ("one", "two", "two")]
    assert [link.name for link in proxy.links] == ["one", "two", "two"]
    assert proxy.named("two") == proxy.links[1:]
    for number, connection in enumerate((first, second, third)):
        pid = await (await connection.execute("select pg_backend_pid()")).fetchone()
        assert proxy.backend(*pid) is proxy.links[number]
    proxy.links[1].freeze()
    hangs, question = await silent(one(second))
    assert hangs and await one(first) and await one(third)
    proxy.links[1].close()
    assert await lost(question)
    await until(lambda: len(proxy.links) == 2)


async def test_connections_of_one_name_are_silent_and_new_ones_are_not(proxy, connect):
    named, other = await connect("a name of 7"), await connect("other")
    proxy.silence("a name")
    hangs, question = await silent(one(named))
    async with asyncio.timeout(20):
        assert hangs and await one(other) and await one(await connect("a name of 8"))
    proxy.thaw()
    assert await question


@pytest.mark.parametrize("arrives", [True, False], ids=["answer-lost", "lost"])
async def test_a_trap_freezes_the_first_connection_that_sends_a_text(proxy, connect, db, arrives):
    first, second = await connect(), await connect()
    proxy.trap(b"arrived", arrives=arrives)
    assert await one(first) and not proxy.sprung.is_set()
    hangs, task = await silent(first.execute("create table if not exists arrived ()"))
    assert hangs and proxy.sprung.is_set()
    assert await db.value("select to_regclass('arrived') is not null") is arrives
    await second.execute("create table if not exists arrived ()")
    proxy.thaw()
    await task


async def test_new_connections_of_one_name_are_frozen_before_their_first_byte(proxy, connect):
    proxy.greet = lambda link: link.freeze() if link.name == "one" else None
    hangs, hello = await silent(connect("one"))
    assert hangs and await one(await connect("two"))
    proxy.thaw()
    assert await one(await hello)


@pytest.mark.parametrize("door", [Door.DROP, Door.RESET, Door.REFUSE], ids=lambda door: door.name)
async def test_a_cut_ends_what_is_there_and_turns_new_connections_away(proxy, connect, door):
    old = await connect()
    proxy.cut(door)
    assert await lost(old.execute("select 1"))
    with pytest.raises(OSError) if door is not Door.DROP else pytest.raises(asyncio.IncompleteReadError):
        await raw(proxy)
    assert await lost(connect())
    proxy.mend()
    assert await one(await connect())


def port(proxy):
    return psycopg.conninfo.conninfo_to_dict(proxy.dsn)["port"]


async def raw(proxy):
    """Waits for a byte from the proxy as a client that sends none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port(proxy))
    try:
        async with asyncio.timeout(20):
            await reader.readexactly(1)
    finally:
        writer.close()


async def test_a_server_that_vanished_does_not_even_accept(proxy, connect):
    old = await connect()
    proxy.vanish()
    hangs, question = await silent(one(old))
    assert hangs
    hangs, hello = await silent(asyncio.open_connection("127.0.0.1", port(proxy)))
    assert hangs
    hello.cancel()
    proxy.mend()
    assert await one(await connect()) and not question.done()
    proxy.links[0].reset()
    assert await lost(question)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_black_hole_never_lets_anybody_connect(host):
    with black_hole(host) as port:
        hangs, hello = await silent(asyncio.open_connection(host, port))
        assert hangs
        hello.cancel()


async def test_a_delay_holds_back_each_way(proxy, connect):
    connection = await connect()
    proxy.links[0].slow(SOON, Way.DOWN)
    hangs, question = await silent(one(connection))
    assert hangs and await question


@pytest.mark.parametrize("hang", [False, True])
async def test_an_answer_is_cut_short(proxy, connect, hang):
    connection = await connect()
    proxy.links[0].truncate(1000, hang=hang)
    assert await one(connection), "it is shorter than that"
    answer = asyncio.ensure_future(connection.execute("select repeat('x', 10000)"))
    if hang:
        hangs, _ = await silent(answer)
        assert hangs
        proxy.links[0].reset()
    assert await lost(answer)


def test_a_proxy_in_a_thread_freezes_a_synchronous_client(dsn):
    with ProxyThread(dsn) as thread, psycopg.connect(thread.dsn, autocommit=True) as old:
        thread.do(lambda proxy: proxy.freeze())
        answers = []
        asking = threading.Thread(target=lambda: answers.append(old.execute("select 1").fetchone()))
        asking.start()
        asking.join(SOON)
        assert answers == []
        thread.do(lambda proxy: proxy.thaw(old=False))
        with psycopg.connect(thread.dsn) as new:
            assert new.execute("select 2").fetchone() == (2,)
        assert answers == []
        thread.do(lambda proxy: proxy.thaw())
        asking.join(20)
        assert answers == [(1,)]


async def test_only_the_listening_connection_of_a_worker_is_frozen(proxy, settings, db):
    scheduler = Scheduler(app="proxies")
    calls = []

    @scheduler.schedule("tick", "* * * * * *")
    async def tick():
        calls.append(1)

    async def ticks(number):
        seen = len(calls)
        await until(lambda: len(calls) >= seen + number)

    through = settings.merged({"dsn": proxy.dsn}, "test")
    async with working(scheduler, through, resync_interval="500ms") as worker:
        name = f"pgsched {worker.kit.worker}"
        pid = await db.until(
            "select pid from pg_stat_activity where application_name = %s and query ilike 'listen%%'", name
        )
        proxy.backend(pid).freeze()
        await ticks(1)  # the other connections pass on
        asked = "select query_start from pg_stat_activity where pid = %s"
        last = await db.value(asked, pid)
        await ticks(2)
        assert await db.value(asked, pid) == last, "a resync reached the server"
        proxy.thaw()
