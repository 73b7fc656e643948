"""The faults. Each is an asynchronous generator that yields twice: when it has broken something, and when it is healed.

What comes after the second yield cleans up, once everything works again. All that is random comes from the fault's own
dice, so that a seed draws the same faults whatever happens.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from support.links import Link, Way
from support.odd_roles import SETTINGS
from support.proxies import Door, Proxy

from outside import harm
from outside.scene import DAEMONS, LASTING, STALL, Scene

Fault = Callable[[Scene, random.Random], AsyncIterator[str]]
OWNERS = (None, None, None, *DAEMONS)  # None: everybody's way to the database hosts


@dataclass(frozen=True)
class Kind:
    """A kind of fault. area: two faults at once are of different ones. A length lies between shortest and longest."""

    name: str
    area: str
    fault: Fault
    shortest: float
    longest: float
    weight: int


KINDS: dict[str, Kind] = {}


def kind(name: str, area: str, shortest: float, longest: float, weight: int = 2) -> Callable[[Fault], Fault]:
    """Registers a kind of fault under its name."""

    def register(fault: Fault) -> Fault:
        KINDS[name] = Kind(name, area, fault, shortest, longest, weight)
        return fault

    return register


# --- the network --------------------------------------------------------------------------------------------


async def _cut(scene: Scene, owner: str | None, since: float) -> None:
    """Notes that one daemon alone was cut off. If all were, nobody may lose a claim."""
    if owner in scene.daemons:
        scene.excuse(owner, "cut", since)


def _frozen(proxies: list[Proxy]) -> list[Link]:
    return [link for proxy in proxies for link in proxy.links]


async def _freezing(scene: Scene, owner: str | None, way: Way, *, old: bool) -> AsyncIterator[str]:
    proxies, since = scene.of(owner), time.monotonic()
    for proxy in proxies:
        proxy.freeze(way)
    frozen = _frozen(proxies)
    yield f"{owner or 'everybody'}, {way.name}, old connections {'flow again' if old else 'stay frozen'}"
    for proxy in proxies:
        proxy.thaw(old=old)
    await _cut(scene, owner, since)
    yield ""
    for link in frozen:  # the network has forgotten them: both sides hear of it
        link.reset()


@kind("freeze", "network", 3, 20, 4)
async def freeze(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    """Nothing passes, or nothing in one direction, and new connections hang."""
    owner, way, old = dice.choice(OWNERS), dice.choice([Way.BOTH, Way.BOTH, Way.UP, Way.DOWN]), dice.random() < 0.5
    async for each in _freezing(scene, owner, way, old=old):
        yield each


@kind("cut off for long", "network", STALL + 6, STALL + 10, 1)
async def cut_off(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    """One daemon is cut off for longer than its claims hold."""
    owner, old = dice.choice(DAEMONS), dice.random() < 0.5
    async for each in _freezing(scene, owner, Way.BOTH, old=old):
        yield each


@kind("freeze one connection", "network", 1, 5)
async def freeze_one(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    """One connection of a daemon is silent for good, while others and new ones work."""
    owner, number = dice.choice(DAEMONS), dice.randrange(100)
    links = [link for proxy in scene.of(owner) for link in proxy.links if link.name.startswith("pgsched ")]
    if not links:
        yield f"{owner}, which has none"
        yield ""
        return
    link = links[number % len(links)]
    link.freeze()
    yield f"{owner}, connection {number % len(links) + 1} of {len(links)}"
    yield ""
    link.reset()


@kind("reset", "network", 0, 0.1)
async def reset(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    owner = dice.choice(OWNERS)
    for proxy in scene.of(owner):
        for link in list(proxy.links):
            link.reset()
    yield owner or "everybody"
    yield ""


@kind("refuse", "network", 2, 15)
async def refuse(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    """Connections end, and new ones are refused, closed or reset."""
    owner, door, since = dice.choice(OWNERS), dice.choice([Door.REFUSE, Door.DROP, Door.RESET]), time.monotonic()
    for proxy in scene.of(owner):
        proxy.cut(door)
    yield f"{owner or 'everybody'}, {door.value}"
    for proxy in scene.of(owner):
        proxy.mend()
    await _cut(scene, owner, since)
    yield ""


@kind("black hole", "network", 3, 18, 3)
async def vanish(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    """Each packet is lost, and connect() hangs."""
    owner, since = dice.choice(OWNERS), time.monotonic()
    for proxy in scene.of(owner):
        proxy.vanish()
    frozen = _frozen(scene.of(owner))
    yield owner or "everybody"
    for proxy in scene.of(owner):
        proxy.mend()
    await _cut(scene, owner, since)
    yield ""
    for link in frozen:
        link.reset()


@kind("delay", "network", 5, 15)
async def delay(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    """Each byte takes a while, each way."""
    owner, seconds = dice.choice(OWNERS), dice.uniform(0.02, 0.4)
    for proxy in scene.of(owner):
        proxy.delay = seconds
        for link in proxy.links:
            link.slow(seconds)
    yield f"{owner or 'everybody'}, {seconds:.2f} s"
    for proxy in scene.of(owner):
        proxy.delay = 0.0
        for link in proxy.links:
            link.slow(0.0)
    yield ""


@kind("truncate", "network", 1, 5)
async def truncate(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    """Answers, or statements, stop in the middle."""
    owner, way, hang = dice.choice(OWNERS), dice.choice([Way.UP, Way.DOWN]), dice.random() < 0.5
    links = _frozen(scene.of(owner))
    for link in links:
        link.truncate(dice.randrange(1, 400), way, hang=hang)
    yield f"{owner or 'everybody'}, {way.name}, {'silent' if hang else 'closed'} afterwards"
    yield ""
    for link in links:
        link.reset()


# --- the server ---------------------------------------------------------------------------------------------


@kind("server frozen", "server", 3, STALL + 10, 3)
async def server_frozen(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    """SIGSTOP: its kernel accepts connections, and nobody answers."""
    await asyncio.to_thread(scene.server.freeze)
    yield ""
    await asyncio.to_thread(scene.server.thaw)
    yield ""


@kind("server restart", "server", 0, 12, 4)
async def restart(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    mode = dice.choice(["immediate", "immediate", "fast"])
    await asyncio.to_thread(scene.server.stop, mode)
    yield mode
    await asyncio.to_thread(scene.server.start)
    yield ""


async def _failover(scene: Scene, synchronous_next: bool) -> AsyncIterator[str]:
    mode = "synchronous" if scene.synchronous else "asynchronous"
    yield mode
    await scene.promote()
    yield ""
    await harm.fence_old(scene)
    await scene.make_standby(synchronous=synchronous_next)
    for proxy in scene.to(scene.standby.name):
        proxy.mend()


@kind("failover from a dead one", "server", 0.5, 10, 3)
async def failover_dead(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    await asyncio.to_thread(scene.server.stop, "immediate")
    async for each in _failover(scene, dice.random() < 0.5):
        yield each


@kind("failover from a silent one", "server", 0.5, 10, 3)
async def failover_silent(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    """As after a loss of power: no RST, and connect() hangs."""
    await asyncio.to_thread(scene.server.freeze)
    for proxy in scene.to(scene.primary.name, "primary"):
        proxy.vanish()
    async for each in _failover(scene, dice.random() < 0.5):
        yield each


@kind("failover from a read-only one", "server", 0.5, 10, 3)
async def failover_read_only(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    await asyncio.to_thread(scene.server.read_only)
    async for each in _failover(scene, dice.random() < 0.5):
        yield each


@kind("read-only for a while", "server", 2, 15, 1)
async def read_only(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    await asyncio.to_thread(scene.server.read_only)
    yield ""
    await asyncio.to_thread(scene.server.read_only, False)
    yield ""


@kind("standby frozen", "server", 3, 20)
async def standby_frozen(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    """If it is synchronous, all commits wait."""
    standby = scene.standby.server
    assert standby is not None
    await asyncio.to_thread(standby.freeze)
    yield "synchronous" if scene.synchronous else "asynchronous"
    await asyncio.to_thread(standby.thaw)
    yield ""


@kind("sessions ended", "server", 1, 10)
async def terminate(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    """pg_terminate_backend, again and again, for a share of the sessions."""
    share = dice.choice([0.2, 0.5, 1.0])
    statement = ("select pg_terminate_backend(pid) from pg_stat_activity "
                 "where application_name <> 'soak' and backend_type = 'client backend' and random() < %s")  # fmt: skip

    async def again() -> None:
        while True:
            await scene.ask(statement, share)
            await asyncio.sleep(1)

    task = asyncio.create_task(again())
    yield f"{share:.0%} of them each second"
    task.cancel()
    await asyncio.wait([task])
    yield ""


@kind("connections exhausted", "server", 3, 20)
async def exhausted(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    """Others have all connections, and half of the sessions end."""
    async with harm.crowd(scene) as taken:
        yield f"{taken} of others"
    yield ""


@kind("table locked", "server", 3, 20, 3)
async def locked(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    table = dice.choice(["runs", "schedules", "workers"])
    async with harm.locked(scene, table):
        yield f"{table}, in ACCESS EXCLUSIVE mode"
    yield ""


@kind("disk full", "server", 3, 20, 3)
async def disk_full(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    await asyncio.to_thread(harm.fill_disk, scene.primary)
    yield ""
    await asyncio.to_thread(harm.free_disk, scene.primary)
    yield ""


# --- the pooler ---------------------------------------------------------------------------------------------


@kind("pooler restart", "pooler", 0, 12)
async def pooler_restart(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    assert scene.pooler is not None
    since = time.monotonic()
    await asyncio.to_thread(scene.pooler.stop)
    yield ""
    await asyncio.to_thread(scene.pooler.start)
    scene.excuse("pooled", "cut", since)
    yield ""


@kind("pooler pause", "pooler", 2, 15)
async def pooler_pause(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    assert scene.pooler is not None
    since = time.monotonic()
    pausing = asyncio.create_task(asyncio.to_thread(scene.pooler.pause))  # it waits for open transactions
    yield ""
    await asyncio.to_thread(scene.pooler.resume)
    await asyncio.wait([pausing], timeout=20)
    scene.excuse("pooled", "cut", since)
    yield ""


@kind("pooler reconnect", "pooler", 0, 0.1, 1)
async def pooler_reconnect(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    assert scene.pooler is not None
    await asyncio.to_thread(scene.pooler.reconnect)
    yield ""
    yield ""


@kind("dirty neighbour", "pooler", 5, 15)
async def dirty(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    """Another client of the pooler leaves odd settings in the sessions that they share."""
    names = dice.sample(sorted(SETTINGS), 6)
    task = asyncio.create_task(harm.soil(scene, names))
    yield ", ".join(names)
    task.cancel()
    await asyncio.wait([task])
    yield ""


# --- the daemons --------------------------------------------------------------------------------------------


@kind("daemon killed", "daemon", 0, 10, 4)
async def killed(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    name, since = dice.choice([each for each in DAEMONS if each not in LASTING]), time.monotonic()
    await scene.daemons[name].kill()
    scene.excuse(name, "killed", since)
    yield name
    await scene.start(name)
    yield ""


@kind("daemon drained", "daemon", 0, 5)
async def drained(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    name, since = dice.choice([each for each in DAEMONS if each not in LASTING]), time.monotonic()
    scene.daemons[name].send(signal.SIGTERM)
    ending = asyncio.create_task(scene.daemons[name].exit_code(90))
    yield name
    code = await ending
    scene.excuse(name, "drained", since)
    await scene.start(name)
    yield f"exit code {code}"


async def _stopping(scene: Scene, name: str) -> AsyncIterator[str]:
    since = time.monotonic()
    scene.daemons[name].send(signal.SIGSTOP)
    yield name
    scene.daemons[name].send(signal.SIGCONT)
    scene.excuse(name, "stopped", since)
    yield ""


@kind("daemon stopped", "daemon", 2, 18, 3)
async def stopped(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    """SIGSTOP, for less than the stall timeout."""
    async for each in _stopping(scene, dice.choice(DAEMONS)):
        yield each


@kind("daemon stopped for long", "daemon", STALL + 6, STALL + 10, 1)
async def stopped_long(scene: Scene, dice: random.Random) -> AsyncIterator[str]:
    """SIGSTOP, for longer: others take its runs."""
    async for each in _stopping(scene, dice.choice(DAEMONS)):
        yield each
