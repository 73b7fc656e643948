"""What a pooler says by itself: that it has lost its server, and what the server is like. PgBouncer, each kind."""

import psycopg
import pytest
from support.poolers import KINDS

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


async def in_coroutine(dsn: str, **options: object) -> BoundedBlocking:
    return BoundedBlocking.connect(dsn, **options)


async def leave(connection: Bounded | BoundedBlocking) -> None:
    connection.pgconn.finish()
