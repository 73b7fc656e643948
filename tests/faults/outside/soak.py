"""Breaks and heals the outside world for so many seconds: `python -m outside.soak --seconds 3600 --seed 1`.

After each fault it waits until every daemon and client works again, and notes how long that took; then it compares the
books. A seed always draws the same faults. The exit code is 1 if there were findings.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psycopg

from outside.faults import KINDS
from outside.gauges import EVERY, Gauges
from outside.notes import Reader
from outside.report import Report
from outside.scene import CLIENTS, DAEMONS, Scene
from outside.traffic import Traffic

LIMIT = 60.0  # seconds within which everything works again
STILL = 5.0  # seconds without a turn of the event loop, by which something blocks it
UNAVAILABLE = 69  # how a daemon ends whose start meets no database
CALM = 4.0  # seconds between faults
REST = 150.0  # seconds within which every job has ended, once no more come
PROVE = """
    select s.name from pgsched.schedules s where s.entrypoint = s.name and not exists (
        select from pgsched.runs r where r.schedule_id = s.id and r.fire_time > to_timestamp(%s)
            and r.status = 'succeeded')
"""
LIVE = "select count(*) as n from pgsched.runs where status in ('queued', 'running')"


@dataclass(frozen=True)
class Drawn:
    """A fault as the seed draws it. dice: the seed of its own dice."""

    name: str
    length: float
    dice: str


def draw(seed: int, number: int, only: Collection[str] = ()) -> list[Drawn]:
    """The faults of a turn: one, or two at once."""
    dice = random.Random(f"{seed}:{number}")
    kinds = [kind for kind in KINDS.values() if not only or kind.name in only]
    drawn: list[Drawn] = []
    for place in range(2 if dice.random() < 0.3 else 1):
        areas = {KINDS[each.name].area for each in drawn}
        if left := [kind for kind in kinds if kind.area not in areas]:
            [kind] = dice.choices(left, [kind.weight for kind in left])
            length = round(dice.uniform(kind.shortest, kind.longest), 1)
            drawn.append(Drawn(kind.name, length, f"{seed}:{number}:{place}"))
    return drawn


class Soak:
    """One life of a scene under faults."""

    def __init__(self, scene: Scene, traffic: Traffic, report: Report) -> None:
        self._scene, self._traffic, self._report = scene, traffic, report
        self.gauges = Gauges()
        self._reader = Reader(scene.folder)
        self._started = time.monotonic()

    async def begin(self) -> None:
        """Waits until everything works for the first time."""
        _, everything = await self._recover(time.time())
        print(f"everything works {everything:.1f} s after the start, on {self._scene.primary.name}", flush=True)
        self._started, self.gauges.begun = time.monotonic(), time.monotonic()

    async def turn(self, number: int, drawn: list[Drawn]) -> None:
        """Breaks something, heals it, and compares the books once everything works again."""
        here = [each for each in drawn if not self._lacks(each)]
        if not here:
            self._report.line(f"#{number}  {' + '.join(each.name for each in drawn)}: not available here")
            return
        begun = time.monotonic()
        faults = [KINDS[each.name].fault(self._scene, random.Random(each.dice)) for each in here]
        said = [await anext(fault) for fault in faults]  # type: ignore[arg-type]

        async def heal(place: int) -> None:
            await asyncio.sleep(begun + here[place].length - time.monotonic())
            if more := await anext(faults[place]):  # type: ignore[arg-type]
                said[place] += f", {more}"

        await asyncio.gather(*(heal(place) for place in range(len(here))))
        first, everything = await self._recover(time.time())
        for fault in faults:
            async for _ in fault:
                raise AssertionError("a fault yields twice")
        shown = " + ".join(f"{each.name} ({text}) {each.length:g} s" for each, text in zip(here, said, strict=True))
        self._report.fault(number, [each.name for each in here], shown, first, everything)
        await self._compare()

    def _lacks(self, drawn: Drawn) -> bool:
        lacks_pooler = KINDS[drawn.name].area == "pooler" and self._scene.pooler is None
        return lacks_pooler or (drawn.name == "disk full" and bool(self._scene.primary.disk))

    async def _recover(self, healed: float) -> tuple[float, float]:
        """The seconds until the first schedule fires, and until every daemon and every client works."""
        since, first = time.monotonic(), None
        told = 0
        while True:
            self._revive()
            late = [each for each in CLIENTS if self._traffic.succeeded.get(each, 0.0) < since]
            try:
                missing = [row["name"] for row in await self._scene.ask(PROVE, healed)]
            except (psycopg.Error, TimeoutError) as error:
                missing = [f"everything: {error}"] * 100
            took = time.monotonic() - since
            if first is None and len(missing) < len(DAEMONS) * 3:
                first = took
            if not missing and not late:
                assert first is not None
                return first, took
            if took > LIMIT and not told:
                told = 1
                tails = "\n".join(
                    f"--- {name}\n" + "\n".join(daemon.tail().splitlines()[-12:])
                    for name, daemon in self._scene.daemons.items() if f" {name}" in str(missing)
                )  # fmt: skip
                await self._report.finding(f"after {LIMIT:g} s still not working: {missing[:12]} {late}\n{tails}")
            if took > 3 * LIMIT:
                raise RuntimeError(f"it does not recover: {missing[:12]} {late}")
            if took > 2 * LIMIT and told < 2:
                told = 2
                await self._restart({name for name in DAEMONS if f" {name}" in str(missing)})
            await asyncio.sleep(0.1)

    async def _restart(self, names: Collection[str]) -> None:
        """Does as an operator would with daemons that do not work again by themselves."""
        for name in names:
            self._report.note(f"the daemon {name} had to be restarted")
            await self._scene.daemons[name].kill()
            self._scene.excuse(name, "killed", time.monotonic())
            await self._scene.start(name)

    def _revive(self) -> None:
        """A daemon that has ended by itself is started again, as systemd would. It is a finding, except for a start
        that met no database."""
        for name, daemon in list(self._scene.daemons.items()):
            if (code := daemon.process.poll()) is not None:
                if code == UNAVAILABLE:
                    self._report.line(f"the daemon {name} met no database at its start, and is started again")
                else:
                    self._report.note(f"the daemon {name} ended by itself with {code}:\n{daemon.tail()}")
                self._scene.excuse(name, "killed", time.monotonic())
                asyncio.ensure_future(self._scene.start(name))  # noqa: RUF006

    async def _compare(self, *, settled: bool = False) -> None:
        calls = await self._report.compare(self._scene, self._traffic, self._reader, settled=settled)
        self.gauges.tasks(calls)

    async def watch(self) -> None:
        """Samples without the database, which may be away. If this process stands still, it shows its stacks."""
        while True:
            await self.gauges.sample(self._scene, sessions=False)
            begun = time.monotonic()
            while time.monotonic() < begun + EVERY:
                faulthandler.dump_traceback_later(STILL)
                await asyncio.sleep(0.5)

    async def calm(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.gauges.sample(self._scene, sessions=True)

    async def rest(self) -> None:
        """Waits until every job has ended, compares the books, and drains the daemons."""
        # No pause: a run that waits for its turn would wait for its end.
        await self._scene.ask("update pgsched.schedules set ends_at = clock_timestamp() where status = 'active'")
        end = time.monotonic() + REST
        while (await self._scene.ask(LIVE))[0]["n"] and time.monotonic() < end:
            self._revive()
            await asyncio.sleep(0.2)
        await self._compare(settled=True)
        for name, daemon in self._scene.daemons.items():
            if (code := await daemon.stop()) != 0:
                await self._report.finding(f"the idle daemon {name} stopped with {code}")


async def soak(seed: int, seconds: float, turns: list[list[Drawn]] | None = None, only: Collection[str] = (),
               longest: float = 90.0) -> Report:  # fmt: skip
    """turns: these instead of those that the seed draws. Returns what was found."""
    folder = Path(tempfile.mkdtemp(prefix="pgsched-soak-"))
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # the turn goes on to its end, and the tables are printed
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    version = random.Random(seed).choice(["newest", "1.18"])
    report = Report(seed)
    try:
        async with Scene(folder, version) as scene:
            for line in scene.missing:
                report.line(f"NOT AVAILABLE HERE  {line}")
            report.line(f"seed {seed}, PgBouncer {version}")
            for name in DAEMONS:
                await scene.start(name)
            async with Traffic(scene, longest) as traffic:
                report.ask, report.traffic = scene.ask, traffic
                life = Soak(scene, traffic, report)
                await life.begin()
                watching = asyncio.create_task(life.watch())
                begun, number = time.monotonic(), 0
                while time.monotonic() - begun < seconds and not stop.is_set():
                    if turns is not None and number == len(turns):
                        break
                    try:
                        await life.calm(CALM if turns is None else 1.0)
                        await life.turn(number, draw(seed, number, only) if turns is None else turns[number])
                    except (psycopg.Error, TimeoutError, RuntimeError) as error:  # the tables are printed all the same
                        await report.finding(f"the soak cannot go on: {type(error).__name__}: {error}")
                        break
                    number += 1
                watching.cancel()
                faulthandler.cancel_dump_traceback_later()
            await life.rest()
            report.summary(scene, traffic, life.gauges, time.monotonic() - begun)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long to go on")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="default: a new one")
    parser.add_argument("--only", default="", help=f"only these faults, with commas between: {', '.join(KINDS)}")
    given = parser.parse_args()
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # it tells of each refused connection
    only = [name.strip() for name in given.only.split(",") if name.strip()]
    if wrong := set(only) - set(KINDS):
        parser.error(f"there is no fault {', '.join(sorted(wrong))}; the faults are {', '.join(KINDS)}")
    report = asyncio.run(soak(given.seed, given.seconds, only=only))
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
