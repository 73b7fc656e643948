"""Workers with few places, and entrypoints that need some of them."""

from collections import Counter
from dataclasses import replace
from datetime import timedelta

from pgsched import Limits, ProcessExecutor, Scheduler
from pgsched.executors.executor import Place
from support.workers import Parts, Taker

END = "update pgsched.runs set status = 'succeeded', finished_at = now() where id = any(%s)"
LOOKAHEAD = timedelta(seconds=60)
OWN = {"few": 1, "few threads": 2}
NEEDS = {
    "plain": (), "few": (), "limited": (), "thread": (Place.THREAD,), "few threads": (Place.THREAD,),
    "process": (Place.PROCESS,), "either": (Place.THREAD, Place.PROCESS),
}  # fmt: skip


def in_process(tenant: str = ""): ...


def in_either(tenant: str = ""): ...


def scheduler(*, crossing: bool = False) -> Scheduler:
    """crossing: with entrypoints whose runs need a process, or a thread or a process: nobody knows before the claim."""
    made = Scheduler(app="fair")

    @made.entrypoint("plain")
    async def plain(tenant: str = ""): ...

    @made.entrypoint("thread")
    def thread(tenant: str = ""): ...

    @made.entrypoint("few", limits=Limits(per_worker=1))
    async def few(tenant: str = ""): ...

    @made.entrypoint("few threads", limits=Limits(per_worker=2))
    def few_threads(tenant: str = ""): ...

    @made.entrypoint("limited", limits=Limits(concurrency=2, concurrency_key="tenant"))
    async def limited(tenant: str = ""): ...

    if crossing:
        made.entrypoint("process", executor=ProcessExecutor)(in_process)
        made.entrypoint("either")(in_either)
        made.schedule("either", "@yearly", executor=ProcessExecutor)(in_either)
    return made


def used(place: Place, counts: Counter[str]) -> int:
    """Places of a kind that are taken. A run that may need either takes one of each."""
    return sum(counts[name] for name, needs in NEEDS.items() if place in needs)


class Holder(Taker):
    def take(self, runs, asked_at=None):
        super().take(runs)
        self.parts.count()


class Member(Parts):
    """A worker whose claims take places, and nobody starts them."""

    def __init__(self, settings, size=(1, 1, 1), *, crossing=False):
        slots, threads, processes = size
        super().__init__(
            replace(settings, lookahead=LOOKAHEAD), scheduler(crossing=crossing),
            max_running=slots, max_threads=threads, max_processes=processes,
        )  # fmt: skip
        self.slots, self.places = slots, {Place.THREAD: threads, Place.PROCESS: processes}
        self.roster.count = lambda name: sum(run.entrypoint == name for run in self.taken)

    def made_taker(self):
        return Holder(self)

    def count(self):
        self.roster.slots_used = len(self.taken)
        counts = Counter(run.entrypoint for run in self.taken)
        self.roster.used.update({place: used(place, counts) - self.roster.used[place] for place in self.places})
