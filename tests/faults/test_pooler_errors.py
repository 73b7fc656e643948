"""What a pooler says by itself: that it has lost its server, and what the server is like. PgBouncer, each kind."""

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.poolers import KINDS

from pgsched.db import reaching
from pgsched.db.failures import in_sentences
from pgsched.db.mishaps import answered, is_refusal
from pgsched.db.reaching import Bounded, BoundedBlocking
from pgsched.errors import DatabaseUnavailable

WRITES = {"target_session_attrs": "read-write", "autocommit": True}


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_a_pooler_that_has_lost_its_server_is_no_answer_of_the_database(servers, pgbouncer, kind):
    version, settings = KINDS[kind]
    pooler = pgbouncer(servers.primary.dsn, version, pool_mode="transaction", **settings)
    with psycopg.connect(pooler.dsn, autocommit=True) as connection:
        connection.execute("begin")
        connection.execute("select 1")  # now it has a server of its own
        servers.primary.stop("immediate")
        with pytest.raises(psycopg.errors.ProtocolViolation, match="server conn crashed") as lost:
            connection.execute("select 1")
    assert not answered(lost.value)
    assert not is_refusal(lost.value)


def test_an_answer_that_a_pooler_has_mixed_with_its_own_error_is_a_lost_database():
    with pytest.raises(DatabaseUnavailable, match="cannot be reached"), in_sentences("pgsched"):
        raise psycopg.InternalError("received 2 results from command 'COMMIT'")  # as psycopg does then


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_can_write_again_is_reached_though_the_pooler_calls_it_read_only(servers, pgbouncer, kind):
    version, settings = KINDS[kind]
    server = servers.primary
    server.read_only(True)
    pooler = pgbouncer(server.dsn, version, pool_mode="transaction", **settings)
    for connect in (Bounded.connect, in_coroutine):
        with pytest.raises(psycopg.OperationalError, match="read-only"):
            await connect(pooler.dsn, **WRITES)
    server.read_only(False)
    with psycopg.connect(pooler.dsn) as any_other:
        reported = any_other.pgconn.parameter_status(b"default_transaction_read_only")
    assert reported == b"on"  # so libpq refuses this server
    for connect in (Bounded.connect, in_coroutine):
        await leave(await connect(pooler.dsn, **WRITES))


@pytest.mark.parametrize("kind", KINDS)
async def test_the_question_whether_it_can_write_outlasts_a_short_statement_timeout_of_the_role(  # noqa: PLR0917
    odd_roles, db, dsn, pgbouncer, kind, monkeypatch
):
    """The server cancels it eight times."""
    await db.all("create sequence public.asked")
    long = "select case when nextval('public.asked') % 9 <> 0 then pg_sleep(20) is null else false end"
    monkeypatch.setattr(reaching, "READS_ONLY", long)
    for each in (Bounded, BoundedBlocking):
        monkeypatch.setattr(each, "may_only_read", lambda self: True)
    version, settings = KINDS[kind]
    pooler = pgbouncer(dsn, version, pool_mode="transaction", **settings)
    role = conninfo_to_dict(odd_roles.role({"statement_timeout": "50ms"}))
    way = make_conninfo(pooler.dsn, user=role["user"], password=role["password"])
    for times, connect in enumerate((Bounded.connect, in_coroutine), 1):
        await leave(await connect(way, **WRITES))
        assert await db.value("select last_value from public.asked") == 9 * times


async def in_coroutine(dsn: str, **options: object) -> BoundedBlocking:
    return BoundedBlocking.connect(dsn, **options)


async def leave(connection: Bounded | BoundedBlocking) -> None:
    connection.pgconn.finish()
