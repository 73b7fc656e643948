"""What the tests of several parts of a worker are given."""

import pytest
import structlog
from support.workers import Elapsed

from pgsched import Scheduler, connect
from pgsched.worker.kit import Kit


@pytest.fixture
async def kit(settings):
    """A kit with short beats, whose clock a test can advance."""
    beats = {"heartbeat_interval": "1s", "stall_timeout": "30s"}
    made = Kit.build(Scheduler(), settings.merged(beats, "test"), elapsed=Elapsed())
    yield made
    await made.control.discard()
    await made.writes.discard()


@pytest.fixture
async def client(settings):
    async with connect(settings.dsn, schema=settings.schema) as client:
        yield client


@pytest.fixture
def quiet_structlog():
    yield
    structlog.reset_defaults()
