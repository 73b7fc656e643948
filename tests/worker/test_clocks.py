"""The database's clock on the monotonic one: whatever the two do, nothing starts early. And what a machine's own
clocks tell by parting from each other."""

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta

import pytest

from pgsched.worker.clocks import Clocks, DatabaseClock, Jump, Watch

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


def test_a_step_is_told_and_drift_is_not():
    world, clock = World(4), DatabaseClock()
    steps: list[float] = []
    clock.subscribe(steps.append)
    for step in (0.0, 0.0, 3600.0, 3600.0, 0.0):
        world.true += 100
        world.step = step
        world.observe(clock)
    assert steps == [pytest.approx(3600, abs=0.2), pytest.approx(-3600, abs=0.2)]


def test_after_a_suspension_nothing_is_known_until_an_answer_to_a_later_question():
    clock, now = DatabaseClock(), time.monotonic()
    assert not clock.known and clock.now() is None and clock.monotonic(START) == float("inf")
    clock.observe(START, now - 0.01, now)
    assert clock.known and clock.monotonic(START + timedelta(seconds=1)) == pytest.approx(now + 1, abs=0.1)
    asked = time.monotonic()
    clock.forget()
    assert clock.now() is None and clock.monotonic(START) == float("inf")
    clock.observe(START, asked - 0.001, time.monotonic())  # it was stamped before the machine slept
    assert not clock.known
    steps: list[float] = []
    clock.subscribe(steps.append)
    asked = time.monotonic()
    clock.observe(START + timedelta(hours=1), asked, asked + 0.01)
    assert clock.at(asked) == pytest.approx(START + timedelta(hours=1), abs=timedelta(seconds=0.1))
    assert steps == [], "what is forgotten is not compared"


class Fake(Clocks):
    """A machine's clocks that stand still but for what a test does. `slow`: how long each look at one takes."""

    def __init__(self, *, boots: bool = True):
        self.true = 50.0
        self.slow = 0.0
        self.boot: float | None = 1000.0 if boots else None
        self.off = 1e9

    def monotonic(self) -> float:
        self.true += self.slow
        return self.true

    def wall(self) -> float:
        self.true += self.slow
        return self.true + self.off

    def boottime(self) -> float | None:
        self.true += self.slow
        return None if self.boot is None else self.true + self.boot


@pytest.mark.parametrize("boots", [True, False])
@pytest.mark.parametrize(
    ("slept", "step"), [(3600, 0), (0.2, 0), (0, 3600), (0, -3600), (0, 0.2), (3600, -3600), (3600, 1800)]
)
def test_a_sleep_and_a_set_wall_clock_are_told_once(boots, slept, step):
    clocks = Fake(boots=boots)
    jumps: list[Jump] = []
    watch = Watch(clocks)
    watch.subscribe(jumps.append)
    assert not watch.look()
    clocks.true += 7
    if boots:
        clocks.boot += slept
    clocks.off += slept + step
    seen = bool(step + slept) or boots
    assert [watch.look(), watch.look()] == [seen, False]
    if seen:
        assert jumps == [Jump(pytest.approx(slept if boots else 0), pytest.approx(slept + step))]


def test_a_slewed_clock_and_an_interrupted_look_are_no_jump():
    clocks = Fake()
    watch = Watch(clocks)
    for slow in (0.0, 3.0, 0.0, 0.5, 0.0):
        clocks.slow = slow  # as when the process loses its turn between two clocks
        clocks.true += 10
        clocks.off += 10 * 500e-6
        assert not watch.look()


async def test_a_wait_ends_with_its_event_its_moment_or_a_jump():
    clocks, event = Clocks(), asyncio.Event()
    off = 0.0
    clocks.wall = lambda: time.time() + off
    watch = Watch(clocks, turn=0.02)
    before = time.monotonic()
    assert not await watch.wait(event, before + 0.1)
    assert time.monotonic() >= before + 0.1
    waiting = asyncio.create_task(watch.wait(event))
    event_set = asyncio.get_running_loop().call_later(0.1, event.set)
    async with asyncio.timeout(10):
        assert await waiting, "many turns are one wait"
    event.clear()
    waiting = asyncio.create_task(watch.wait(event))
    await asyncio.sleep(0)
    off = -3600.0
    async with asyncio.timeout(10):
        assert not await waiting
    assert event_set.cancelled() is False
