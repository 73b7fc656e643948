"""Harm that takes more than a line: connections, locks, a full disk, settings left behind, an old primary."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence

import psycopg
from support.odd_roles import SETTINGS
from support.proxies import Door

from outside.scene import Host, Scene

_BALLAST = "ballast"
_TRAIL = "select id, op, run, token, attempt, worker, status, key from soak.trail where at > now() - interval '20 min'"


@contextlib.asynccontextmanager
async def crowd(scene: Scene) -> AsyncIterator[int]:
    """Ends half of the sessions, and takes all connections that are left. Yields how many these are."""
    taken: list[psycopg.AsyncConnection] = []
    await scene.ask(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where application_name <> 'soak' and backend_type = 'client backend' and pid % 2 = 0"
    )
    try:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                connecting = psycopg.AsyncConnection.connect(scene.primary.dsn, application_name="soak")
                taken.append(await connecting)
        yield len(taken)
    finally:
        for connection in taken:
            await connection.close()


@contextlib.asynccontextmanager
async def locked(scene: Scene, table: str) -> AsyncIterator[None]:
    """Holds a table in ACCESS EXCLUSIVE mode, as a migration that takes too long."""
    async with await psycopg.AsyncConnection.connect(scene.primary.dsn, application_name="soak") as connection:
        await connection.execute(f"lock table pgsched.{table} in access exclusive mode".encode())
        yield
        await connection.rollback()


def fill_disk(host: Host) -> None:
    """Leaves no free byte on the host's disk."""
    with (host.folder / _BALLAST).open("wb") as file:
        size = 1 << 24
        while size >= 4096:
            try:
                os.posix_fallocate(file.fileno(), file.tell(), size)
                file.seek(size, os.SEEK_CUR)
            except OSError:
                size //= 2


def free_disk(host: Host) -> None:
    """Gives the room back, and starts the server again if it ended for want of it."""
    (host.folder / _BALLAST).unlink()
    assert host.server is not None
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(host.dsn, connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
        if not host.server.up:
            with contextlib.suppress(AssertionError):  # it is just ending
                host.server.start()
        time.sleep(0.1)


async def soil(scene: Scene, names: Sequence[str]) -> None:
    """Leaves settings in the sessions that the pooler's clients share, again and again. They stay there."""
    assert scene.pooler is not None
    while True:
        with contextlib.suppress(psycopg.Error):
            async with await psycopg.AsyncConnection.connect(scene.pooler.dsn, autocommit=True) as connection:
                for name in names:
                    for _ in range(3):  # each may meet another session
                        await connection.execute("select set_config(%s, %s, false)", (name, SETTINGS[name]))
        await asyncio.sleep(0.2)


async def fence_old(scene: Scene) -> None:
    """Cuts the old primary off, and notes the transactions that the new one does not have."""
    old = scene.standby
    assert old.server is not None
    for proxy in scene.to(old.name):
        proxy.cut(Door.DROP)
    await asyncio.to_thread(old.server.thaw)
    if not old.server.up:
        await asyncio.to_thread(old.server.start)
    there = {row["id"] for row in await scene.ask(_TRAIL)}
    missing = [row for row in await scene.ask(_TRAIL, host=old) if row["id"] not in there]
    if scene.synchronous:
        scene.unacknowledged += len(missing)
    else:
        scene.lost += missing
