"""PgBouncer as tests use it, in each of its kinds; and a version that is not here is a skip with its reason."""

import contextlib
import threading

import psycopg
import pytest
from support import pgbouncer_packages
from support.poolers import KINDS
from support.proxies import ProxyThread


@pytest.fixture(params=KINDS)
def start(pgbouncer, dsn, request):
    """Starts a PgBouncer of each kind."""
    version, settings = KINDS[request.param]

    def start(**more):
        return pgbouncer(dsn, version, **settings, **more)

    return start


@contextlib.contextmanager
def two(pooler):
    """Two clients through it."""
    with psycopg.connect(pooler.dsn, autocommit=True) as one, psycopg.connect(pooler.dsn, autocommit=True) as other:
        yield one, other


def process(connection):
    return connection.execute("select pg_backend_pid()").fetchone()[0]


def test_transaction_mode_lends_a_session_for_each_transaction(start):
    with two(start(pool_mode="transaction", default_pool_size=2)) as (one, other):
        first = process(one)
        with one.transaction():
            assert process(one) == first
            assert process(other) != first


def test_in_transaction_mode_a_neighbour_leaves_its_settings_behind(start, request):
    with two(start(pool_mode="transaction", default_pool_size=1)) as (one, other):
        one.execute("set array_nulls = off")
        assert other.execute("show array_nulls").fetchone() == ("off",)
        # Since 1.20 it keeps this one in step with each client, because the server reports its changes.
        one.execute("set intervalstyle = 'iso_8601'")
        left = "iso_8601" if "1.18" in request.node.callspec.id else "postgres"
        assert other.execute("show intervalstyle").fetchone() == (left,)


def test_session_mode_lends_a_session_until_the_client_leaves(start):
    pooler = start(pool_mode="session", default_pool_size=2)
    with two(pooler) as (one, other):
        assert process(one) != process(other)
        one.execute("set array_nulls = off")
        mine = process(one)
        one.close()
        with psycopg.connect(pooler.dsn, autocommit=True) as next_one:
            assert process(next_one) == mine
            assert next_one.execute("show array_nulls").fetchone() == ("on",)


def test_server_reset_query_always_forgets_settings_between_transactions(start):
    with two(start(pool_mode="transaction", server_reset_query_always=1)) as (one, other):
        one.execute("set array_nulls = off")
        assert process(one) == process(other)
        assert other.execute("show array_nulls").fetchone() == ("on",)


def test_only_max_prepared_statements_carries_them_to_another_session(start, request):
    with two(start(pool_mode="transaction", default_pool_size=2)) as (one, other):
        assert one.execute("select 42", prepare=True).fetchone() == (42,)
        with other.transaction():
            mine = process(other)
            # The session that prepared it is taken.
            if "200" in request.node.callspec.id:
                assert one.execute("select 42", prepare=True).fetchone() == (42,)
                assert process(one) != mine
            else:
                with pytest.raises(psycopg.errors.InvalidSqlStatementName):
                    one.execute("select 42", prepare=True)


def test_pause_holds_statements_until_resume(start):
    pooler = start(pool_mode="transaction")
    with two(pooler) as (one, _):
        process(one)
        pooler.pause()
        answers = []
        asking = threading.Thread(target=lambda: answers.append(process(one)))
        asking.start()
        asking.join(0.5)
        assert answers == []
        pooler.resume()
        asking.join(20)
        assert len(answers) == 1


def test_reconnect_replaces_the_session(start):
    pooler = start(pool_mode="transaction")
    with two(pooler) as (one, _):
        first = process(one)
        assert process(one) == first
        pooler.reconnect()
        assert process(one) != first


def test_a_restart_ends_connections_and_new_ones_work(start):
    pooler = start(pool_mode="transaction")
    with two(pooler) as (one, _):
        process(one)
        pooler.restart()
        with pytest.raises(psycopg.OperationalError):
            process(one)
    with two(pooler) as (one, _):
        assert process(one)


def test_a_role_that_a_test_makes_may_connect_and_its_settings_hold(start, odd_roles):
    role = odd_roles.role({"intervalstyle": "iso_8601"})
    given = psycopg.conninfo.conninfo_to_dict(role)
    pooler = start(pool_mode="transaction")
    with psycopg.connect(pooler.dsn, user=given["user"], password=given["password"]) as connection:
        assert connection.execute("select current_user, current_setting('intervalstyle')").fetchone() == (
            given["user"], "iso_8601",
        )  # fmt: skip


def test_a_proxy_stands_before_it(start):
    with ProxyThread(start(pool_mode="transaction").dsn) as thread, psycopg.connect(thread.dsn) as connection:
        assert thread.do(lambda proxy: len(proxy.links)) == 1
        assert process(connection)


def test_the_versions_are_those_that_their_names_say(pgbouncer, dsn):
    assert pgbouncer(dsn, "1.18").show("version")[0]["version"].startswith("PgBouncer 1.18.")
    number = pgbouncer(dsn, "newest").show("version")[0]["version"].split()[1]
    assert tuple(map(int, number.split("."))) >= (1, 26)


@pytest.mark.parametrize("tried", [True, False])
def test_a_version_that_is_not_here_is_skipped_with_the_reason(pgbouncer, dsn, monkeypatch, tmp_path, tried):
    monkeypatch.setattr(pgbouncer_packages, "FOLDER", tmp_path)
    if tried:  # on a machine whose apt is none of Debian's
        monkeypatch.setattr(pgbouncer_packages.shutil, "which", lambda name: None)
        pgbouncer_packages.get("1.18")
    with pytest.raises(pytest.skip.Exception, match="apt" if tried else "make pgbouncer"):
        pgbouncer(dsn, "1.18")
