"""Servers that a test stops, freezes and makes read-only, and standbys that it promotes."""

import sys
import threading

import psycopg
import pytest
from model.soak import server as model_server
from outside.scene import Scene
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support import diagram
from support.proxies import Proxy, ProxyThread, black_hole
from support.servers import several

from pgsched.db import addresses
from pgsched.db.reaching import Bounded, BoundedBlocking
from pgsched.db.session import conninfo_for

PATIENT = {"connect_timeout": "2"}  # seconds for each host, of which libpq takes at least two


def ask(dsn, statement, **settings):
    with psycopg.connect(dsn, autocommit=True, **settings) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


@pytest.mark.slow
@pytest.mark.parametrize("synchronous", [False, True], ids=["asynchronous", "synchronous"])
def test_a_standby_has_the_data_and_takes_over_when_it_is_promoted(servers, synchronous):
    primary, standby = servers.primary, servers.standby(synchronous=synchronous)
    ask(primary.dsn, "create table notes as select 42 as n")
    if not synchronous:
        standby.until("select to_regclass('notes') is not null")
    standby.until("select n = 42 from notes")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        ask(standby.dsn, "insert into notes values (43)")
    assert ask(primary.dsn, "select sync_state from pg_stat_replication") == ("sync" if synchronous else "async")

    both = several([primary.dsn, standby.dsn], target_session_attrs="read-write")
    where = "select inet_server_port() is null and current_setting('data_directory') = '{}'".format
    assert ask(both, where(primary.folder))
    primary.stop("immediate")
    standby.promote()
    ask(both, "insert into notes values (43)")
    assert ask(both, where(standby.folder))


@pytest.mark.slow
def test_a_commit_waits_for_a_synchronous_standby(servers):
    standby = servers.standby(synchronous=True)
    standby.freeze()
    with psycopg.connect(servers.primary.dsn, autocommit=True) as connection:
        made = threading.Thread(target=connection.execute, args=("create table notes ()",))
        made.start()
        # The table is written, and the session waits.
        servers.primary.until("select count(*) = 1 from pg_stat_activity where wait_event = 'SyncRep'")
        standby.thaw()
        made.join(20)
        assert not made.is_alive()
    standby.until("select to_regclass('notes') is not null")


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, -1], ids=["primary first", "standby first"])
async def test_of_several_hosts_the_kind_is_chosen_that_the_dsn_asks_for(servers, tmp_path, monkeypatch, order):
    both = [server.dsn for server in (servers.primary, servers.standby())][::order]
    given = conninfo_to_dict(several(both))
    (tmp_path / "services").write_text(f"[prod]\nhost={given['host']}\nport={given['port']}\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    kinds = {None: False, "primary": False, "standby": True, "prefer-standby": True}
    for way in (several(both), make_conninfo("service=prod", user="postgres", dbname="postgres")):
        for wanted, standby in kinds.items():
            addresses.forget()
            info = conninfo_for(make_conninfo(way, **({"target_session_attrs": wanted} if wanted else {})), "test")
            for _ in range(2):  # now it is known which of them has answered
                with BoundedBlocking.connect(info, autocommit=True) as connection:
                    assert connection.execute("select pg_is_in_recovery()").fetchone() == (standby,), wanted
                async with await Bounded.connect(info, autocommit=True) as connection:
                    cursor = await connection.execute("select pg_is_in_recovery()")
                    assert await cursor.fetchone() == (standby,), wanted
    servers.all[1].stop("fast")
    with BoundedBlocking.connect(info, autocommit=True) as connection:  # it is only preferred
        assert connection.execute("select pg_is_in_recovery()").fetchone() == (False,)


def test_a_frozen_server_answers_nobody_and_goes_on_afterwards(servers):
    with psycopg.connect(servers.primary.dsn, autocommit=True) as old:
        servers.primary.freeze()
        with pytest.raises(psycopg.errors.ConnectionTimeout):
            ask(servers.primary.dsn, "select 1", **PATIENT)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(old.execute("select 1").fetchone()))
        asking.start()
        asking.join(0.5)
        assert answers == []
        servers.primary.thaw()
        asking.join(20)
        assert answers == [(1,)]
        assert ask(servers.primary.dsn, "select 1") == 1


@pytest.mark.slow
def test_a_read_only_server_is_alive_and_refuses_to_write(servers):
    primary, standby = servers.primary, servers.standby()
    ask(primary.dsn, "create table notes (n int)")
    with psycopg.connect(primary.dsn, autocommit=True) as old:
        primary.read_only()
        for write in (
            lambda: old.execute("insert into notes values (1)"),
            lambda: ask(primary.dsn, "create table t ()"),
        ):
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                write()
    standby.promote()
    both = several([primary.dsn, standby.dsn], target_session_attrs="read-write")
    assert ask(both, "select current_setting('data_directory')") == str(standby.folder)
    primary.read_only(False)
    assert ask(both, "select current_setting('data_directory')") == str(primary.folder)


def test_one_dsn_leads_past_a_silent_host(dsn):
    with black_hole() as port, ProxyThread(dsn) as second:
        first = make_conninfo(dsn, host="127.0.0.1", port=port)
        assert ask(several([first, second.dsn], **PATIENT), "select 1") == 1
        with pytest.raises(psycopg.errors.ConnectionTimeout):
            ask(first, "select 1", **PATIENT)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all addresses of 127.0.0.0/8")
async def test_one_name_leads_past_a_silent_address(dsn, host_name):
    async with Proxy(dsn) as proxy:
        port = int(conninfo_to_dict(proxy.dsn)["port"])
        host_name("one.test", "127.0.0.2")
        host_name("two.test", "127.0.0.2", "127.0.0.1")
        with black_hole("127.0.0.2", port):
            with pytest.raises(psycopg.errors.ConnectionTimeout):
                await psycopg.AsyncConnection.connect(make_conninfo(proxy.dsn, host="one.test", **PATIENT))
            through = make_conninfo(proxy.dsn, host="two.test", **PATIENT)
            async with await psycopg.AsyncConnection.connect(through) as connection:
                assert connection.info.hostaddr == "127.0.0.1"


@pytest.mark.parametrize("command", ["diagram", "model", "soak"])
async def test_make_commands_use_the_programs_that_are_named(command, monkeypatch, tmp_path):
    """Those of PGSCHED_TEST_POSTGRES. This folder has none."""
    monkeypatch.setattr("support.servers.PROGRAMS", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(OSError, match=rf"{tmp_path}/bin/initdb"):
        if command == "diagram":
            diagram.main()
        elif command == "model":
            model_server().__enter__()
        else:
            await Scene(tmp_path, "newest").__aenter__()
