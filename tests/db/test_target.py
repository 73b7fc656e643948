"""Which database the settings lead to. Commands ask without an event loop, and a worker within one."""

import contextlib
import threading

import pytest
from structlog.testing import capture_logs

from pgsched.config import LIBPQ, Settings
from pgsched.db import embedded
from pgsched.db.target import database, database_async

DSN = "host=embedded"


@pytest.fixture
def steps(monkeypatch) -> list[tuple[str, str | None, bool]]:
    """What happens to the embedded server, its directory, and whether in this thread. No database is named."""
    found, here = [], threading.current_thread()

    @contextlib.contextmanager
    def start(data_dir):
        found.append(("started", data_dir, threading.current_thread() is here))
        try:
            yield DSN
        finally:
            found.append(("stopped", data_dir, threading.current_thread() is here))

    monkeypatch.setattr(embedded, "start", start)
    for name in LIBPQ:
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.mark.parametrize("dsn", ["host=named", None], ids=["a DSN", "libpq's environment"])
async def test_a_named_database_is_used(steps, monkeypatch, dsn):
    monkeypatch.setenv("PGHOST", "named")
    with database(Settings(dsn=dsn, data_dir="here")) as found:
        assert found == dsn
    async with database_async(Settings(dsn=dsn, data_dir="here")) as reached:
        assert reached == (dsn, False)
    assert steps == []


def test_otherwise_the_embedded_one_runs_during_the_block(steps):
    with pytest.raises(LookupError), database(Settings(data_dir="here")) as dsn:
        assert dsn == DSN
        assert steps == [("started", "here", True)]
        raise LookupError
    assert steps[1:] == [("stopped", "here", True)]


async def test_a_worker_starts_and_stops_it_outside_the_event_loop(steps):
    with capture_logs() as events, pytest.raises(LookupError):
        async with database_async(Settings(data_dir="here")) as reached:
            assert reached == (DSN, True)
            assert steps == [("started", "here", False)]
            raise LookupError
    assert steps[1:] == [("stopped", "here", False)]
    assert [(event["event"], event["data_dir"]) for event in events] == [("embedded_started", "here")]
