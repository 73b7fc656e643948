"""Which errors are a refusal, and how a batch is taken apart down to the row that is refused."""

import psycopg
import pytest
from support.refusals import STATES

from pgsched.db.apart import Apart
from pgsched.db.mishaps import answered, is_refusal, passing
from pgsched.db.session import conninfo_for


def error(state):
    return psycopg.errors.lookup(state)("no") if state else psycopg.OperationalError("gone")


@pytest.mark.parametrize("state", STATES)
def test_a_server_that_answers_refuses_what_was_sent(state):
    assert is_refusal(error(state)) and not passing(error(state)) and answered(error(state))


@pytest.mark.parametrize(
    "state", ["08006", "40001", "40P01", "53100", "53300", "55P03", "57014", "57P01", "58030", "25006", "25P03", None]
)
def test_errors_that_are_known_to_pass(state):
    assert passing(error(state)) and not is_refusal(error(state))


def test_a_value_that_cannot_be_sent_is_refused_and_a_lost_connection_is_not():
    for odd in (UnicodeEncodeError("latin-1", "€", 0, 1, "no"), OverflowError(), TypeError(), psycopg.DataError("nul"),
                psycopg.ProgrammingError("cannot adapt"), NotImplementedError()):  # fmt: skip
        assert is_refusal(odd) and not passing(odd)
    for gone in (psycopg.OperationalError("gone"), psycopg.InterfaceError("closed"), OSError(), TimeoutError()):
        assert passing(gone) and not is_refusal(gone)
    assert not is_refusal(KeyError()) and not passing(KeyError()), "a fault of ours is neither"


def test_the_encoding_is_ours_whatever_the_environment_says(monkeypatch, settings):
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with psycopg.connect(conninfo_for(settings.dsn, "test")) as connection:
        assert connection.execute("select '€'").fetchone() == ("€",)


async def test_a_batch_is_halved_down_to_the_row_and_all_others_land_once():
    sent, aside = [], []

    async def send(part):
        if any(n in (3, 60) for n in part):
            raise error("P0001")
        sent.extend(part)
        return part

    async def put(n, _):
        aside.append(n)

    landed = await Apart(send, put).all(range(100))
    assert landed == sent == [n for n in range(100) if n not in (3, 60)]
    assert aside == [3, 60]


async def test_an_error_that_passes_is_raised_or_waited_for_and_at_last_counts_as_a_refusal():
    tries, aside = [], []

    async def send(part):
        tries.append(len(part))
        if 3 in part:
            raise error("40001")
        return part

    async def put(n, _):
        aside.append(n)

    async def wait(_): ...

    with pytest.raises(psycopg.errors.SerializationFailure):
        await Apart(send, put).all([1, 2, 3, 4])
    tries.clear()
    assert await Apart(send, put, wait, 2).all([1, 2, 3, 4]) == [1, 2, 4]
    assert aside == [3] and tries == [4, 4, 4, 2, 2, 1, 1]


async def test_an_error_of_a_prepared_statement_gets_one_more_try():
    tries = []

    async def send(part):
        tries.append(part)
        if len(tries) == 1:
            raise error("0A000")
        return part

    async def put(n, _):
        raise AssertionError

    assert await Apart(send, put).all([1]) == [1]
