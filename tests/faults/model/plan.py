"""Draws a burst: the workers it begins with, and operations with their instants. Pure: a seed and a number decide all.

Whole seconds after the start are fire times of most schedules, so the fraction of an instant says how near to one an
operation is. Operations name what they touch; whether it is there then, the world shows.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from model.jobs import ENTRYPOINTS, SHARED

NAMES = tuple(f"s{n}" for n in range(10))
DECLARED_NAMES = ("a-tick", "a-slow", "a-many", "b-tick", "b-slow", "b-many")
EXPRESSIONS = ("* * * * * *", "* * * * * *", "*/2 * * * * *", "*/3 * * * * *", "@every 1s", "@every 1500ms")
OVERLAPS = ("skip", "queue", "allow", "cancel", "2")
CATCH_UPS = ("latest", "all", "none")
COLUMNS = ("timeout", "args", "priority", "overlap")
ZONES = ("UTC", "Europe/Berlin", "Asia/Kolkata")
CHANGED = ("args", "timing", "timing", "overlap", "entrypoint", "timeout", "priority", "max_runs")
STATES = ("P0001", "42501", "42P01", "0A000", "XX000", "55000", "23514", "22003", "2F000")


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that somebody does `at` so many seconds after the start."""

    at: float
    name: str
    values: dict[str, Any]

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.values.items())
        return f"{self.at:7.3f}  {self.name}({shown})"


@dataclass(frozen=True, slots=True)
class Burst:
    """What happens in one schema, from nothing to rest.

    sparse: nothing fires again and again, and no worker resyncs: a wake-up that is lost stays lost.
    """

    seed: int
    number: int
    length: float
    workers: list[dict[str, Any]] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    odd: bool = False
    quick: bool = False
    sparse: bool = False

    @property
    def name(self) -> str:
        return f"{self.seed}:{self.number}"


class Dice:
    """Draws the values of operations."""

    def __init__(self, seed: str, length: float, *, quick: bool) -> None:
        self.random = random.Random(seed)
        self.length = length
        self.quick = quick
        self.sparse = self.maybe(0.25)

    def instant(self) -> float:
        """Half of them lie within 150 ms before a whole second."""
        if self.random.random() < 0.5:
            return round(self.random.randint(1, int(self.length)) - self.random.uniform(0.0, 0.15), 3)
        return round(self.random.uniform(0.0, self.length), 3)

    def maybe(self, share: float) -> bool:
        return self.random.random() < share

    def name(self) -> str:
        return self.random.choice(DECLARED_NAMES if self.maybe(0.15) else NAMES)

    def args(self, entrypoint: str) -> dict[str, Any]:
        found: dict[str, Any] = {"n": self.random.randrange(100)}
        if entrypoint == "keyed":
            found["k"] = self.random.choice("xyz")
        if self.maybe(0.3) and entrypoint not in ("capped", "keyed", "rated", "pooled"):
            found["seconds"] = round(self.random.uniform(0.0, 1.5), 2)
        return found

    def timing(self) -> dict[str, Any]:
        found: dict[str, Any] = {"expression": self.random.choice(EXPRESSIONS)}
        if self.sparse or self.maybe(0.2):
            found = {"at": round(self.random.uniform(-1.0, self.length), 2)}
        if self.maybe(0.2):
            found["timezone"] = self.random.choice(ZONES)
        return found

    def schedule(self) -> dict[str, Any]:
        entrypoint = self.random.choice(ENTRYPOINTS)
        if not self.quick and self.maybe(0.07):
            entrypoint = "hung"
        found = {"entrypoint": entrypoint, "args": self.args(entrypoint), **self.timing()}
        if entrypoint not in ("only-a", "only-b") and self.maybe(0.2):
            found["app"] = self.random.choice(("model-a", "model-b"))
        found["overlap"] = self.random.choice(OVERLAPS)
        found["catch_up"] = self.random.choice(CATCH_UPS)
        choices: dict[str, tuple[float, Any]] = {
            "jitter": (0.2, self.random.choice((0.3, 0.7))),
            "grace": (0.15, self.random.choice((0.3, 5.0))),
            "max_runs": (0.15, self.random.randint(1, 5)),
            "timeout": (0.1, 0.4),
            "priority": (0.3, self.random.randint(-5, 5)),
            "starts": (0.1, round(self.random.uniform(0.5, 3.0), 2)),
            "ends": (0.1, round(self.random.uniform(2.0, self.length), 2)),
        }
        return found | {name: value for name, (share, value) in choices.items() if self.maybe(share)}

    def worker(self, *, daemon: bool) -> dict[str, Any]:
        return {
            "daemon": daemon,
            "code": self.random.choice("ab"),
            "version": 0 if self.sparse else 2 if not self.quick and self.maybe(0.15) else 1,
            "lookahead": self.random.choice((0, 0.3, 1, 1, 3)),
            "max_running": self.random.choice((3, 1000, 1000)),
            "resync": 0 if self.sparse else self.random.choice((0, 60)),
        }

    def change(self) -> dict[str, Any]:
        """The values of one alteration."""
        kind = self.random.choice(CHANGED)
        if kind == "args":
            return {"args": {"n": self.random.randrange(100)}}
        if kind == "timing":
            return self.timing()
        if kind == "entrypoint":
            return {"entrypoint": self.random.choice(SHARED), "args": {"n": self.random.randrange(100)}}
        return {
            "overlap": {"overlap": self.random.choice(OVERLAPS)},
            "timeout": {"timeout": self.random.choice((0.4, None))},
            "priority": {"priority": self.random.randint(-5, 5)},
            "max_runs": {"max_runs": self.random.choice((1, 3, None))},
        }[kind]

    def job(self) -> dict[str, Any]:
        entrypoint = self.random.choice(ENTRYPOINTS)
        if not self.quick and self.maybe(0.1):
            entrypoint = self.random.choice(("process", "hung"))
        found: dict[str, Any] = {"entrypoint": entrypoint, "args": self.args(entrypoint)}
        if self.maybe(0.3):
            found["due"] = round(self.random.uniform(0.0, 2.0), 2)
        if self.maybe(0.3):
            found["priority"] = self.random.randint(-5, 5)
        if self.maybe(0.3):
            found["unique_key"] = self.random.choice(("one", "two", "three"))
            if found["unique_key"] == "three":
                found["unique"] = "waiting"
        return found

    def of_client(self, name: str) -> dict[str, Any]:
        """What an operation of a client needs to know."""
        pick = self.random.randrange(1000)
        drawn: dict[str, Callable[[], dict[str, Any]]] = {
            "create": lambda: {"name": self.random.choice(NAMES), **self.schedule()},
            "insert": lambda: {"name": self.random.choice(NAMES), **self.schedule()},
            "recreate": lambda: {
                "name": self.random.choice(NAMES), "same": self.maybe(0.5), "retimed": self.maybe(0.3),
                **self.schedule(),
            },
            "alter": lambda: {"name": self.name(), **self.change()},
            "update": lambda: {"name": self.name(), **self.change()},
            "pause": lambda: {
                "name": self.name(),
                "until": round(self.random.uniform(0.2, 2.0), 2) if self.maybe(0.4) else None,
                "backlog": self.maybe(0.3),
            },
            "resume": lambda: {"name": self.name()},
            "look": lambda: {"name": self.name(), "pick": pick},
            "trigger": lambda: {"name": self.name()},
            "save_back": lambda: {"name": self.name()},
            "remove": lambda: {"name": self.random.choice(NAMES)},
            "enqueue": self.job,
            "enqueue_many": lambda: {"entrypoint": self.random.choice(SHARED), "count": self.random.randint(2, 12)},
            "update_all": lambda: {"column": self.random.choice(COLUMNS), "value": pick % 5},
            "move": lambda: {"name": self.random.choice(NAMES), "by": self.random.choice((-3, -1, 1, 2))},
            "backfill": lambda: {"name": self.name(), "again": self.maybe(0.3)},
            "odd": lambda: {"kind": self.random.choice(ODD), "state": self.random.choice(STATES), "pick": pick},
            "lock": lambda: {
                "what": self.random.choice(("runs", "schedules")), "pick": pick, "seconds": self.seconds(),
            },
        }  # fmt: skip
        return drawn.get(name, lambda: {"pick": pick})()

    def seconds(self) -> float:
        return round(self.random.uniform(0.1, 1.6), 2)

    def held(self) -> dict[str, Any]:
        """A transaction that stays open: some changes, a wait, an end."""
        names = self.random.choices(tuple(CHANGES), tuple(CHANGES.values()), k=self.random.randint(1, 3))
        return {
            "changes": [(name, self.of_client(name)) for name in names],
            "seconds": self.seconds(),
            "immediate": self.maybe(0.3),
            "commit": self.maybe(0.8),
        }

    def of_worker(self, name: str) -> dict[str, Any]:
        """What an operation on a worker needs to know."""
        values: dict[str, Any] = {"pick": self.random.randrange(1000)}
        if name == "freeze":
            values["seconds"] = round(self.random.choice((self.random.uniform(0.1, 1.0), 6.0)), 2)
        if name in ("start", "kill", "drain", "abort"):
            values |= self.worker(daemon=name == "kill")
        return values


CHANGES = {
    "alter": 8, "update": 4, "pause": 4, "resume": 4, "trigger": 3, "remove": 2, "recreate": 4, "create": 3,
    "insert": 2, "update_all": 2, "save_back": 2, "enqueue": 3, "cancel": 1, "retry": 1,
}  # fmt: skip
OTHERS = {"look": 2, "enqueue_many": 3, "retry_many": 1, "move": 1, "backfill": 2, "lock": 3, "hold": 8}
VIOLENCE = {"drain": 2, "abort": 1, "start": 2, "terminate": 1}
PROCESSES = {"kill": 3, "freeze": 2, **VIOLENCE}
ODD = (
    "unknown entrypoint", "bad args", "huge args", "attempt", "errors", "claimed by nobody", "refused insert",
    "refused claim", "refused end", "bad expression", "bad zone",
)  # fmt: skip


def generate(seed: int, number: int, *, length: float = 5.0, quick: bool = False, odd: bool = True) -> Burst:
    """The burst of a seed with this number. quick: without processes and without what takes long. odd: with odd rows
    in some bursts."""
    dice = Dice(f"pgsched {seed} {number} {length} {quick}", length, quick=quick)
    daemons = 0 if quick else dice.random.choice((0, 1, 2))
    odd = dice.maybe(0.3) and odd
    workers = [{**dice.worker(daemon=False), "code": code, "version": int(not dice.sparse)} for code in "ab"]
    workers += [dice.worker(daemon=n < daemons) for n in range(max(daemons, dice.random.randint(0, 2)))]
    operations = [Operation(0.0, "create", dice.of_client("create") | {"name": name}) for name in NAMES[:6]]

    def draw(kinds: dict[str, int], count: int, values: Any) -> None:
        for name in dice.random.choices(tuple(kinds), tuple(kinds.values()), k=count):
            operations.append(Operation(dice.instant(), name, values(name)))

    clients = {**CHANGES, **OTHERS} | ({"odd": 8} if odd else {})
    draw(clients, int(length * dice.random.randint(4, 9)), lambda n: dice.held() if n == "hold" else dice.of_client(n))
    draw(PROCESSES if daemons else VIOLENCE, dice.random.randint(1, 4), dice.of_worker)
    operations.sort(key=lambda operation: operation.at)
    return Burst(seed, number, length, workers, operations, odd, quick, dice.sparse)
