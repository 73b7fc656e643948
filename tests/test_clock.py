"""The database's clock on the monotonic one: whatever the two do, nothing starts early."""

import random
from datetime import UTC, datetime, timedelta

from pgsched.clock import DatabaseClock

START = datetime(2027, 3, 28, 0, 59, 59, tzinfo=UTC)


class World:
    """A database whose clock and a process whose monotonic clock are apart, with answers that take time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.true = 0.0
        self.step = 0.0

    def database(self, true: float) -> datetime:
        return START + timedelta(seconds=true * (1 + 40e-6) + self.step)

    def monotonic(self, true: float) -> float:
        return 5_000_000.0 + true

    def observe(self, clock: DatabaseClock) -> None:
        before = self.true
        stamped = before + self.random.random() * 0.003
        after = stamped + self.random.random() * 0.003
        clock.observe(self.database(stamped).replace(microsecond=self.database(stamped).microsecond),
                      self.monotonic(before), self.monotonic(after))  # fmt: skip
        self.true = after


def test_never_early_and_seldom_late():
    world, clock = World(1), DatabaseClock()
    late = []
    for _ in range(2000):
        world.observe(clock)
        due = world.database(world.true) + timedelta(seconds=world.random.random())
        start = clock.monotonic(due) - 5_000_000.0
        at = world.database(start)
        assert at >= due - timedelta(microseconds=60), "that is the drift of a second, which nobody could know of"
        late.append((at - due) / timedelta(milliseconds=1))
        world.true += world.random.random() * 2
    assert sorted(late)[len(late) // 2] < 3


def test_a_stepped_clock_is_believed_at_once():
    world, clock = World(2), DatabaseClock()
    for step in (0.0, 3600.0, -3600.0, 0.5, -0.5):
        world.step = step
        world.observe(clock)
        due = world.database(world.true) + timedelta(seconds=1)
        start = clock.monotonic(due) - 5_000_000.0
        assert timedelta(0) <= world.database(start) - due + timedelta(microseconds=60) < timedelta(milliseconds=10)


def test_what_it_says_started_is_not_before_the_fire_time():
    world, clock = World(3), DatabaseClock()
    for _ in range(500):
        world.observe(clock)
        due = (world.database(world.true) + timedelta(seconds=1)).replace(microsecond=0)
        assert clock.at(clock.monotonic(due)) >= due
        world.true += 1
