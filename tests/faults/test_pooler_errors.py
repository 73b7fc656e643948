"""A pooler's own errors say that the database is away, not that it refuses rows: PgBouncer, each kind."""

import psycopg
import pytest
from support.poolers import KINDS

from pgsched.db.mishaps import answered, is_refusal


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
