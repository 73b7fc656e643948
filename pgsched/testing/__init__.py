"""For an application's own tests: runs its schedules and jobs without waiting, on a clock that the test moves.

    async with Harness(create_scheduler(), now=datetime(2027, 3, 28, 0, tzinfo=UTC)) as t:
        runs = await t.run_until(datetime(2027, 3, 29, 0, tzinfo=UTC))

It uses the daemon's own code and SQL, on a real PostgreSQL. Only the clock is another one. See docs/testing.md.
"""

from pgsched.testing.clock import Clock
from pgsched.testing.harness import Harness
from pgsched.testing.server import embedded_dsn
from pgsched.testing.sync import SyncHarness

__all__ = ["Clock", "Harness", "SyncHarness", "embedded_dsn"]

# As in pgsched itself: public names say the module that applications import them from.
for _name in __all__:
    globals()[_name].__module__ = __name__
