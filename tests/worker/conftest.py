"""What the tests of several parts of a worker are given."""

import pytest

from pgsched import Scheduler
from pgsched.worker.kit import Kit


@pytest.fixture
async def kit(settings):
    made = Kit.build(Scheduler(), settings.merged({"heartbeat_interval": "1s", "stall_timeout": "30s"}, "test"))
    yield made
    await made.control.discard()
    await made.writes.discard()
