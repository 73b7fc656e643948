"""What happens to workers: they start, drain, are killed or frozen, lose their sessions. Another one takes the place of
each that ends, so that work goes on."""

import asyncio
from typing import Any

from model.clients import act
from model.workers import STALL, AnyWorker
from model.world import World

LONG = 20.0  # seconds within which a worker must end


def pick_one(world: World, pick: int, *, daemon: bool | None = None) -> AnyWorker | None:
    """One of the workers that are alive and not about to end. It counts as ending: no other operation picks it."""
    able = [w for w in world.workers if w.alive and not w.ending and w.ready and daemon in (None, w.daemon)]
    if not able:
        return None
    found = able[pick % len(able)]
    found.ending = True
    return found


@act
async def start(world: World, _connection: Any, pick: int, **spec: Any) -> Any:
    world.add(**spec)


@act
async def drain(world: World, _connection: Any, pick: int, **spec: Any) -> Any:
    worker = pick_one(world, pick)
    if worker is None:
        return "nobody"
    world.add(**{**spec, "code": worker.code})
    # Threads outlive a hosted one in this process, and nobody notes when those of a daemon end with theirs.
    await world.excuse(worker, "drained", "hung")
    worker.stop()
    if not await world.until(lambda: not worker.alive, LONG):
        raise AssertionError(f"the worker {await worker.id()} did not end within {LONG} s of a drain")
    return str(await worker.id())


@act
async def kill(world: World, _connection: Any, pick: int, **spec: Any) -> Any:
    worker = pick_one(world, pick, daemon=True)
    if worker is None:
        return "nobody"
    name = await worker.id()
    await world.excuse(worker, "killed")
    worker.kill()
    world.add(**{**spec, "code": worker.code})
    return str(name)


@act
async def abort(world: World, _connection: Any, pick: int, **spec: Any) -> Any:
    worker = pick_one(world, pick, daemon=False)
    if worker is None:
        return "nobody"
    await world.excuse(worker, "aborted")
    worker.kill()
    world.add(**{**spec, "code": worker.code})
    return str(await worker.id())


@act
async def freeze(world: World, _connection: Any, pick: int, seconds: float) -> Any:
    """SIGSTOP for a while. Only one that lasts about as long as the stall timeout may cost claims."""
    worker = pick_one(world, pick, daemon=True)
    if worker is None:
        return "nobody"
    name = await worker.id()
    if seconds > STALL / 2:
        await world.excuse(worker, "frozen")
    worker.freeze()
    try:
        await asyncio.sleep(seconds)
    finally:
        worker.thaw()
        worker.ending = False
    return str(name)


@act
async def terminate(world: World, connection: Any, pick: int) -> Any:
    """Ends all sessions of a worker, which must reconnect."""
    worker = pick_one(world, pick)
    if worker is None:
        return "nobody"
    name = await worker.id()
    worker.ending = False
    rows = await world.rows(
        connection,
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name like %s",
        f"pgsched {name}%",
    )
    return str(name), rows
