"""The needs of runs on this worker: a slot, a thread, a process, one of the places of an entrypoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pgsched.db.statements.values import EntrypointDefaults, Share
from pgsched.rules.fairness import SLOT, Candidate, Need, on_worker, place
from pgsched.scheduler import Scheduler
from pgsched.worker.run.roster import Roster


@dataclass(frozen=True, slots=True)
class Lane:
    """Entrypoints whose runs have the same needs: a slot, and the same places (none, a thread, a process).

    An entrypoint with a per-worker limit has a lane of its own, whose runs also need one of that limit.

    free: how many of their runs there is room for.
    """

    entrypoints: tuple[str, ...]
    needs: tuple[Need, ...]
    free: int

    @property
    def shared(self) -> tuple[Need, ...]:
        """The needs that other lanes may share."""
        return tuple(need for need in self.needs if need not in map(on_worker, self.entrypoints))


class Lanes:
    """The lanes of a worker. It reads the entrypoints (there may be hundreds) once and not in each pass, and again if
    there are more of them."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._needs: dict[str, tuple[Need, ...]] = {}
        self._defaults: dict[str, EntrypointDefaults] = {}
        self._names: dict[tuple[Need, ...], tuple[str, ...]] = {}

    @property
    def needs(self) -> Mapping[str, tuple[Need, ...]]:
        """The needs of runs, by entrypoint."""
        self._learn()
        return self._needs

    @property
    def defaults(self) -> Mapping[str, EntrypointDefaults]:
        """The options of runs that have none of their own, by entrypoint."""
        self._learn()
        return self._defaults

    def of(self, rooms: Mapping[Need, int]) -> list[Lane]:
        """All lanes, with as much room as `rooms` leaves."""
        self._learn()
        return [Lane(names, needs, min(rooms[need] for need in needs)) for needs, names in self._names.items()]

    def rooms(self, slots: int, roster: Roster) -> dict[Need, int]:
        """How much is left of each need. slots: how many runs may be claimed."""
        rooms: dict[Need, int] = {SLOT: slots}
        rooms |= {place(which): number for which, number in roster.places().items()}
        for known in self._scheduler.entrypoints.values():
            if known.limits.per_worker is not None:
                rooms[on_worker(known.name)] = max(0, known.limits.per_worker - roster.count(known.name))
        return rooms

    def _learn(self) -> None:
        if len(self._needs) == len(self._scheduler.entrypoints):
            return
        of: dict[tuple[Need, ...], list[str]] = {}
        for name, known in self._scheduler.entrypoints.items():
            own = [on_worker(name)] if known.limits.per_worker is not None else []
            needs = self._needs[name] = (SLOT, *map(place, sorted(known.places)), *own)
            of.setdefault(needs, []).append(name)
            self._defaults[name] = EntrypointDefaults(
                name, known.retry.attempts, known.retry.backoff, known.retry.max_backoff, known.timeout
            )
        self._names = {needs: tuple(names) for needs, names in of.items()}


def shares(lanes: Sequence[Lane], rooms: Mapping[Need, int]) -> list[Share]:
    """A share for each lane, as large as its room. Lanes that need the same places share a pool."""
    pools = {needs: number for number, needs in enumerate(dict.fromkeys(lane.shared for lane in lanes))}
    return [
        Share(lane.entrypoints, lane.free, pools[lane.shared], min(rooms[need] for need in lane.shared))
        for lane in lanes
    ]


def counted(lanes: Sequence[Lane], chosen: Sequence[Candidate], *, idle: bool | None = None) -> list[Share]:
    """A share for each lane, for as many as were chosen: those are the first of the lane."""
    of = {name: number for number, lane in enumerate(lanes) for name in lane.entrypoints}
    counts = Counter(of[each.entrypoint] for each in chosen)
    return [Share(lanes[number].entrypoints, count, idle=idle) for number, count in counts.items()]
