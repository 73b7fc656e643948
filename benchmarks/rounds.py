"""Repeats measurements: all once, then all again, so that a change of the machine's mood affects all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psycopg
from figures import Fault, Figures


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of all measurements, and their time limits."""

    rounds: int = 3
    fires: int = 7  # of the every-second schedule, a round; 3 x 7 in all
    herds: tuple[int, ...] = (100, 1_000, 10_000)
    drains: tuple[int, ...] = (10_000, 50_000)
    crowd: int = 100_000  # for one instant, with two workers
    declared: int = 100_000  # schedules in the code of an application
    small: int = 1_000  # jobs to drain for those that do fewer than a thousand a second
    calls: int = 900  # triggers and enqueues in all rounds
    million: int = 1_000_000
    minutes: int = 1  # that an idle worker is looked at
    beats: int = 60  # seconds that the running jobs are looked at
    running: int = 1_000
    kills: int = 3
    bounded: float = 45.0  # seconds within which a killed worker's job must start again
    enqueued: int = 2_000
    batch: int = 10_000
    fire_times: int = 20_000
    budget: float = 270.0  # seconds that a part may begin measurements in


QUICK = Sizes(
    rounds=1,
    fires=2,
    herds=(100,),
    drains=(1_000,),
    crowd=500,
    declared=500,
    small=100,
    calls=20,
    million=1_000,
    minutes=0,
    beats=3,
    running=100,
    kills=1,
    bounded=4.0,
    enqueued=50,
    batch=500,
    fire_times=500,
)


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement of one contestant: its names in the table, and the function that measures once."""

    what: str
    who: str
    unit: str
    measure: Callable[[], float]
    once: bool = False  # for measurements that are too long to repeat


def repeat(part: str, figures: Figures, cases: Sequence[Case], sizes: Sizes) -> None:
    """Measures each case `sizes.rounds` times, as the part's time allows. Failures are reported and not repeated."""
    end = time.monotonic() + sizes.budget
    for case in cases:
        figures.add(part, case.what, case.who, case.unit, None)  # the table's order
    took: dict[Case, float] = {}
    failed: set[Case] = set()
    for number in range(sizes.rounds):
        for case in cases:
            left = end - time.monotonic()
            if case in failed or (case.once and number) or took.get(case, 5.0) > left:
                if number == 0:
                    figures.add(part, case.what, case.who, case.unit, None, "no time was left")
                continue
            began = time.monotonic()
            try:
                figures.add(part, case.what, case.who, case.unit, case.measure())
            except (Fault, psycopg.Error, OSError) as fault:
                failed.add(case)
                figures.add(part, case.what, case.who, case.unit, None, " ".join(str(fault).split()))
            took[case] = time.monotonic() - began
            print(f"  {part} {number + 1}: {case.who}: {case.what}: {took[case]:.1f} s", flush=True)
