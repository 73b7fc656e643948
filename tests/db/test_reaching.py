"""Connecting: in good order, with a limit for each address and for all; and waits for answers that have an end."""

import asyncio
import contextlib
import gc
import socket
import threading
import time
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from support.proxies import Proxy
from support.workers import until

from pgsched.db import addresses, reaching
from pgsched.db.addresses import Attempts
from pgsched.db.reaching import Bounded, BoundedBlocking, NoAnswer, within
from pgsched.db.session import conninfo_for

TENTH = 10  # a second of these limits is a tenth of one here
BOTH = pytest.mark.parametrize("kind", [Bounded, BoundedBlocking])


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """Nothing is known of any host, and limits of seconds are tenths of seconds."""
    addresses.forget()
    for module in ("connection", "connection_async"):
        monkeypatch.setattr(f"psycopg.{module}.timeout_from_conninfo", lambda p: float(p["connect_timeout"]) / TENTH)


@pytest.fixture
def tried(monkeypatch):
    """The port, address and limit of each attempt, in their order. While `down`, every attempt fails at once."""

    class Tried(list):
        down = False

    found = Tried()
    for kind in (psycopg.Connection, psycopg.AsyncConnection):
        real = kind.connect.__func__

        def noting(cls, info, *, real=real, **options):
            given = conninfo_to_dict(info)
            found.append((given.get("port"), given.get("hostaddr"), int(given["connect_timeout"])))
            if found.down:
                raise psycopg.OperationalError("down")
            return real(cls, info, **options)

        monkeypatch.setattr(kind, "connect", classmethod(noting))
    return found


@pytest.fixture
def silent():
    """A port that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield str(listening.getsockname()[1])


@pytest.fixture
def refusing():
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield str(taken.getsockname()[1])


@pytest.fixture
async def proxy(dsn):
    async with Proxy(dsn) as made:
        yield made


def ports(proxy, *ports):
    """The proxy's DSN with these ports before its own: each is a host."""
    own = conninfo_to_dict(proxy.dsn)["port"]
    all_of_them = [*ports, own]
    return make_conninfo(proxy.dsn, host=",".join(["127.0.0.1"] * len(all_of_them)), port=",".join(all_of_them))


async def connect(kind, info, **options):
    if kind is Bounded:
        return await Bounded.connect(info, autocommit=True, **options)
    return await asyncio.to_thread(BoundedBlocking.connect, info, autocommit=True, **options)


async def execute(connection, statement):
    if isinstance(connection, Bounded):
        return await connection.execute(statement)
    return await asyncio.to_thread(connection.execute, statement)


@contextlib.asynccontextmanager
async def closing(connection):
    try:
        yield connection
    finally:
        connection.pgconn.finish()


@BOTH
async def test_the_host_that_answered_last_is_tried_first(kind, proxy, silent, refusing, tried):
    info = ports(proxy, silent, refusing)
    own = conninfo_to_dict(proxy.dsn)["port"]
    async with closing(await connect(kind, info)):
        assert tried == [(silent, None, 4), (refusing, None, 4), (own, None, 4)]
    tried.clear()
    async with closing(await connect(kind, info)):
        assert tried == [(own, None, 4)]


@BOTH
async def test_a_host_that_answered_and_is_gone_is_not_insisted_on(kind, proxy, silent, tried):
    info = ports(proxy, silent)
    own = conninfo_to_dict(proxy.dsn)["port"]
    attempts = Attempts(info, {})
    attempts.answered(attempts.hosts[0])  # now silent
    async with closing(await connect(kind, info)):
        assert [port for port, *_ in tried] == [silent, own]
    tried.clear()
    async with closing(await connect(kind, info)):
        assert [port for port, *_ in tried] == [own]


@pytest.fixture
def service(tmp_path, monkeypatch):
    """Writes libpq's service file, with one service "prod"."""
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))

    def write(**settings):
        lines = "".join(f"{name}={value}\n" for name, value in settings.items())
        (tmp_path / "services").write_text(f"[prod]\n{lines}")

    return write


@pytest.mark.parametrize("way", ["dsn", "environment"])
@BOTH
async def test_the_hosts_of_a_service_are_tried_like_those_of_a_dsn(  # noqa: PLR0917
    kind, way, proxy, silent, refusing, tried, service, monkeypatch
):
    """libpq alone would spend all the time on the first one."""
    given = conninfo_to_dict(proxy.dsn)
    own, _ = given.pop("port"), given.pop("host")
    service(host="127.0.0.1,127.0.0.1,127.0.0.1", port=f"{silent},{refusing},{own}", connect_timeout=3)
    info = make_conninfo("", **given, **({"service": "prod"} if way == "dsn" else {}))
    if way == "environment":
        monkeypatch.setenv("PGSERVICE", "prod")
    assert addresses.several(info)
    for expected in ([silent, refusing, own], [own]):
        tried.clear()
        async with closing(await connect(kind, info)):
            assert tried == [(port, None, 3) for port in expected]
    tried.clear()
    async with closing(await connect(kind, make_conninfo(proxy.dsn, service="prod"))):
        assert tried == [(own, None, 3)], "the DSN itself has precedence"


@BOTH
async def test_a_service_that_libpq_does_not_find_is_named(kind, service):
    service()
    with pytest.raises(psycopg.OperationalError, match='definition of service "none" not found'):
        await connect(kind, "service=none")


@BOTH
async def test_nothing_but_the_dsn_asks_for_another_kind_of_server(kind, proxy, service, monkeypatch):
    service(target_session_attrs="standby")
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "standby")
    for info in (proxy.dsn, make_conninfo(proxy.dsn, service="prod")):
        async with closing(await connect(kind, conninfo_for(info, "test"))) as connection:
            await execute(connection, "create temporary table written ()")
    with pytest.raises(psycopg.OperationalError, match="not in hot standby mode"):
        await connect(kind, conninfo_for(make_conninfo(proxy.dsn, target_session_attrs="standby"), "test"))


@BOTH
async def test_every_address_of_a_name_is_tried(kind, proxy, silent, tried, monkeypatch):
    """The first address of the name is silent there."""
    own = conninfo_to_dict(proxy.dsn)["port"]
    with socket.create_server(("127.0.0.2", int(own))):
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.2", "127.0.0.1")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: found * 2)
        info = make_conninfo(proxy.dsn, host="db.example.com")
        for expected in (["127.0.0.2", "127.0.0.1"], ["127.0.0.1"]):
            tried.clear()
            async with closing(await connect(kind, info)) as connection:
                assert [address for _, address, _ in tried] == expected
                assert connection.info.host == "db.example.com", "a certificate is for the name"


@BOTH
async def test_an_address_that_is_alone_gets_more_time(kind, silent, tried):
    with pytest.raises(psycopg.errors.ConnectionTimeout, match=r"^no answer from 127\.0\.0\.1 within 10 s$"):
        await connect(kind, f"host=127.0.0.1 port={silent}")
    assert tried == [(silent, None, 10)]


@BOTH
async def test_while_none_answers_each_gets_twice_the_time(kind, proxy, silent, tried):
    info = ports(proxy, silent)
    tried.down = True
    for limit in (4, 8, 10, 10):
        tried.clear()
        with pytest.raises(psycopg.OperationalError, match="none of 2 addresses can be used"):
            await connect(kind, info)
        assert [given for *_, given in tried] == [limit, limit]
    tried.down = False
    async with closing(await connect(kind, info)):
        tried.clear()
    async with closing(await connect(kind, info)):
        assert [limit for *_, limit in tried] == [4]


@BOTH
async def test_a_limit_of_the_connection_string_holds(kind, silent, refusing, tried, monkeypatch):
    both = f"host=127.0.0.1,127.0.0.1 port={silent},{refusing}"
    with pytest.raises(psycopg.OperationalError, match=r"127\.0\.0\.1: no answer within 3 s"):
        await connect(kind, f"{both} connect_timeout=3")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
    with pytest.raises(psycopg.OperationalError):
        await connect(kind, both)
    assert [limit for *_, limit in tried] == [3, 3, 2, 2]


@BOTH
async def test_the_error_names_every_address_and_its_reason(kind, silent, refusing, monkeypatch):
    def unknown(host, *_args, **_options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(psycopg.OperationalError) as raised:
        await connect(kind, f"host=nowhere.example,127.0.0.1,127.0.0.2 port=1,{silent},{refusing} password=s3cret")
    text = str(raised.value)
    assert text.startswith(
        "none of 3 addresses can be used: nowhere.example: the host name 'nowhere.example' cannot be resolved: "
        "Name or service not known; 127.0.0.1: no answer within 4 s; 127.0.0.2: "
    )
    assert "refused" in text and "s3cret" not in text and "\n" not in text
    with pytest.raises(psycopg.OperationalError, match=r"^the host name 'nowhere.example' cannot be resolved: Name"):
        await connect(kind, "host=nowhere.example")


@BOTH
async def test_a_resolver_that_does_not_answer_has_a_limit(kind, monkeypatch):
    monkeypatch.setattr(addresses, "RESOLVE", 0.1)
    go_on = asyncio.Event()
    loop = asyncio.get_running_loop()

    def never(*_args, **_options):
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", never)
    with pytest.raises(psycopg.OperationalError, match=r"cannot be resolved: no answer"):
        await connect(kind, "host=slow.example")
    monkeypatch.setattr(addresses, "RESOLVE", 20)
    with pytest.raises(psycopg.errors.ConnectionTimeout, match=r"^no answer within 0.1 s$"):
        await connect(kind, "host=slow.example", total=0.1)
    go_on.set()


@BOTH
async def test_a_total_limit_ends_it_and_names_the_reasons_so_far(kind, silent, refusing, proxy):
    info = f"host=127.0.0.1,127.0.0.1 port={refusing},{silent}"
    with pytest.raises(
        psycopg.errors.ConnectionTimeout, match=r"^no answer from 127.0.0.1 within 0.1 s; 127.0.0.1: .*refused"
    ):
        await connect(kind, info, total=0.1)
    with pytest.raises(psycopg.errors.ConnectionTimeout, match=r"^no answer from 127.0.0.1 within 0.1 s$"):
        await connect(kind, f"host=127.0.0.1 port={silent}", total=0.1)
    async with closing(await connect(kind, proxy.dsn, total=20)) as connection:
        await execute(connection, "select 1")


async def test_the_total_limit_holds_for_the_question_whether_the_server_can_write(proxy):
    proxy.trap(b"pg_is_in_recovery", arrives=False)
    info = make_conninfo(proxy.dsn, target_session_attrs="read-write", options="-c default_transaction_read_only=on")
    with pytest.raises(psycopg.OperationalError, match=r"^the server has not answered for 0\.\d+ s$"):
        await Bounded.connect(info, total=0.5)


def reaching_threads():
    return [thread for thread in threading.enumerate() if thread.name == "pgsched-reach"]


async def test_a_thread_that_asks_that_question_ends_with_the_total_limit(proxy, monkeypatch):
    monkeypatch.setattr(reaching, "ON_ITS_WAY", 60.0)
    proxy.trap(b"pg_is_in_recovery", arrives=False)
    info = make_conninfo(proxy.dsn, target_session_attrs="read-write", options="-c default_transaction_read_only=on")
    with pytest.raises(psycopg.OperationalError, match=r"has not answered|no answer from 127.0.0.1 within 0.5 s"):
        await connect(BoundedBlocking, info, total=0.5)
    assert proxy.sprung.is_set()
    await until(lambda: not reaching_threads(), 5)


@BOTH
async def test_no_attempt_goes_on_for_long_after_the_total_limit(kind, silent, tried):
    """A thread that tries cannot be stopped from outside."""
    with pytest.raises(psycopg.errors.ConnectionTimeout, match=r"^no answer from 127.0.0.1 within 0.05 s$"):
        await connect(kind, f"host=127.0.0.1,127.0.0.1 port={silent},{silent} connect_timeout=100", total=0.05)
    await until(lambda: not reaching_threads(), 5)
    assert tried == [(silent, None, 2)]


async def test_a_connection_that_comes_too_late_for_a_thread_is_closed(proxy, monkeypatch):
    monkeypatch.setattr("psycopg.connection.timeout_from_conninfo", lambda params: 20.0)
    proxy.freeze()
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        await connect(BoundedBlocking, proxy.dsn, total=0.2)
    assert len(proxy.links) == 1
    proxy.thaw()
    await until(lambda: not proxy.links)


@BOTH
async def test_hosts_that_psycopg_refuses_are_refused(kind):
    with pytest.raises(psycopg.Error, match="match"):
        await connect(kind, "host=a,b port=1,2,3")


@BOTH
async def test_a_connection_without_an_answer_is_closed(kind, proxy):
    async with closing(await connect(kind, proxy.dsn)) as connection:
        with within(connection, 20):
            await execute(connection, "select 1")
        proxy.silence()
        silent = pytest.raises(NoAnswer, match=r"^the server has not answered for 0.2 s$")
        with silent, within(connection, 20), within(connection, 0.2), within(connection, None):
            await execute(connection, "select 1")
        assert connection.closed and connection.nested == {}


@BOTH
async def test_limits_of_tasks_that_share_a_connection_end_with_each(kind, proxy):
    """One begins in the other and ends after it: the connection must not keep either."""
    async with closing(await connect(kind, proxy.dsn)) as connection:
        first, second = within(connection, 0.2), within(connection, 0.3)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        await execute(connection, "select pg_sleep(0.6)")
        connection.limit = 0.2
        with within(connection, 20), pytest.raises(NoAnswer):
            await execute(connection, "select pg_sleep(10)")


@BOTH
async def test_a_server_that_is_at_work_is_waited_for(kind, proxy):
    """It is asked again each time; only an answer that is lost ends the wait."""
    asked = []

    def answers(*, working):
        def ask():
            asked.append(1)
            return len(asked) < working

        async def ask_async():
            return ask()

        return ask_async if kind is Bounded else ask

    async with closing(await connect(kind, proxy.dsn)) as connection:
        connection.limit, connection.at_work = 0.1, answers(working=99)
        row = await execute(connection, "select 7, pg_sleep(0.6)")
        assert (await row.fetchone() if kind is Bounded else row.fetchone())[0] == 7
        assert len(asked) >= 2
        asked.clear()
        connection.at_work = answers(working=3)
        with pytest.raises(NoAnswer):
            await execute(connection, "select pg_sleep(20)")
        assert len(asked) == 3 and connection.closed


@BOTH
async def test_an_answer_that_is_on_its_way_is_waited_for(kind, proxy):
    """The server is no longer at work, since it has answered a moment ago."""

    def over():
        return False

    async def over_async():
        return False

    async with closing(await connect(kind, proxy.dsn)) as connection:
        connection.limit, connection.at_work = 0.4, over_async if kind is Bounded else over
        await execute(connection, "select pg_sleep(0.6)")


async def test_a_cancellation_while_the_server_is_asked_closes_the_connection(proxy):
    """Its statement is still going on: nobody may use it."""
    asked = asyncio.Event()

    async def ask():
        asked.set()
        await asyncio.sleep(60)

    async with closing(await connect(Bounded, proxy.dsn)) as connection:
        connection.limit, connection.at_work = 0.1, ask
        task = asyncio.create_task(connection.execute("select pg_sleep(20)"))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert connection.closed


@BOTH
async def test_a_wait_with_a_limit_of_its_own_keeps_it(kind, proxy):
    """Such as for notifications: none are there, and that is no fault of the connection."""
    async with closing(await connect(kind, proxy.dsn)) as connection:
        connection.limit = 20.0
        before = time.monotonic()
        if kind is Bounded:
            assert [each async for each in connection.notifies(timeout=0.1)] == []
        else:
            assert await asyncio.to_thread(lambda: list(connection.notifies(timeout=0.1))) == []
        assert not connection.closed and time.monotonic() < before + 20


@pytest.fixture
def no_collection():
    """What is only in a cycle stays, as in a worker, which collects seldom."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def sockets() -> int:
    found = 0
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(path.readlink()).startswith("socket:")
    return found


# A thread that waits cannot be cancelled: its attempt ends by its own limit.
@pytest.mark.parametrize(
    ("kind", "way"),
    [
        (Bounded, "its own limit"),
        (Bounded, "a limit for all"),
        (Bounded, "cancelled"),
        (BoundedBlocking, "its own limit"),
    ],
)
async def test_an_attempt_that_failed_leaves_no_socket_open(kind, way, silent, no_collection):
    info = f"host=127.0.0.1,127.0.0.1 port={silent},{silent} connect_timeout=2 sslmode=disable gssencmode=disable"
    before = sockets()
    for _ in range(3):
        if kind is BoundedBlocking:
            with pytest.raises(psycopg.OperationalError):
                await asyncio.to_thread(kind.connect, info)
        elif way == "cancelled":
            connecting = asyncio.create_task(kind.connect(info))
            await until(lambda: sockets() > before)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            del connecting
        else:
            with pytest.raises(psycopg.OperationalError):
                await kind.connect(info, total=0.1 if way == "a limit for all" else None)
    assert sockets() == before


@BOTH
async def test_a_connection_whose_question_fails_is_closed(kind, proxy, monkeypatch, no_collection):
    """Whether the server can write is asked before anybody else knows of the connection."""
    monkeypatch.setattr(reaching, "READS_ONLY", "select 1 / 0")
    monkeypatch.setattr(kind, "may_only_read", lambda self: True)
    with pytest.raises(psycopg.errors.DivisionByZero) as error:
        await connect(kind, proxy.dsn, target_session_attrs="read-write")
    assert error  # its frames hold the connection, which is closed all the same
    await until(lambda: not proxy.links)


@BOTH
@pytest.mark.parametrize("cancelled", [9, 10])
async def test_that_question_is_asked_up_to_ten_times(kind, proxy, monkeypatch, cancelled):
    """The server cancels it so often. The connection is not in autocommit mode."""
    asked = []

    def cancel(sent):
        if sent == reaching.READS_ONLY:
            asked.append(sent)
            return "do $$ begin raise query_canceled; end $$" if len(asked) <= cancelled else sent
        return sent

    cursor = psycopg.AsyncCursor if kind is Bounded else psycopg.Cursor
    real = cursor.execute
    monkeypatch.setattr(cursor, "execute", lambda self, sent, *args, **more: real(self, cancel(sent), *args, **more))
    monkeypatch.setattr(kind, "may_only_read", lambda self: True)
    info = make_conninfo(proxy.dsn, target_session_attrs="read-write")
    connecting = kind.connect(info) if kind is Bounded else asyncio.to_thread(kind.connect, info)
    if cancelled == 10:
        with pytest.raises(psycopg.errors.QueryCanceled):
            await connecting
        await until(lambda: not proxy.links)
    else:
        async with closing(await connecting) as connection:
            assert connection.info.transaction_status == TransactionStatus.IDLE
    assert len(asked) == 10


@BOTH
@pytest.mark.parametrize("cancelled", [9, 10])
async def test_a_transaction_begins_up_to_ten_times(kind, dsn, cancelled):
    """The server cancels its opening so often."""
    async with closing(await connect(kind, dsn)) as connection:
        await execute(connection, "create temporary sequence asked")
        cancel = f"do $$ begin if nextval('asked') <= {cancelled} then raise query_canceled; end if; end $$"
        connection.opening = [(cancel, ())]
        blocks = []

        async def begin():
            async with connection.transaction():
                blocks.append(connection.info.transaction_status)

        def begin_blocking():
            with connection.transaction():
                blocks.append(connection.info.transaction_status)

        with pytest.raises(psycopg.errors.QueryCanceled) if cancelled == 10 else contextlib.nullcontext():
            await (begin() if kind is Bounded else asyncio.to_thread(begin_blocking))
        assert blocks == ([TransactionStatus.INTRANS] if cancelled == 9 else [])
        assert connection.info.transaction_status == TransactionStatus.IDLE
        row = await execute(connection, "select last_value from asked")
        assert (await row.fetchone() if kind is Bounded else row.fetchone()) == (10,)
