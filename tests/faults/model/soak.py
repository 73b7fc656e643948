"""Runs bursts for so many seconds, or one burst again: `python -m model.soak --seconds 3600`, `… --seed 123:17`."""

import argparse
import asyncio
import contextlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator

from support.servers import running

from model import burst as bursts
from model.plan import generate


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The server of PGSCHED_TEST_DSN, or one that is started here, as for the tests."""
    if given := os.environ.get("PGSCHED_TEST_DSN"):
        yield given
        return
    with running() as dsn:
        yield dsn


async def soak(dsn: str, seed: int, only: int | None, seconds: float, **how: bool) -> Counter[str]:
    """Prints each finding with what led to it. Returns how often each came up."""
    tally: Counter[str] = Counter()
    begun = time.monotonic()
    number = 0 if only is None else only
    while only is not None or time.monotonic() - begun < seconds:
        burst = generate(seed, number, **how)
        since = time.monotonic()
        world, found = await bursts.run(dsn, burst)
        print(f"{burst.name}  {len(burst.operations)} operations, {time.monotonic() - since:.1f} s, "
              f"longest pause of this process {world.still:.2f} s, {len(found)} findings", flush=True)  # fmt: skip
        tally["(bursts)"] += 1
        for finding in found:
            tally[finding.name] += 1
            print(f"\nFINDING {burst.name}  {finding}", flush=True)
        if found:
            print("\n  workers: " + "\n           ".join(map(str, burst.workers)))
            print("  done:\n    " + "\n    ".join(world.done) + "\n", flush=True)
        if only is not None:
            break
        number += 1
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long to go on")
    parser.add_argument("--seed", default="", help="a seed, or SEED:BURST to run one burst again; default: a new one")
    parser.add_argument("--quick", action="store_true", help="bursts as `make test` runs them: without processes")
    parser.add_argument("--even", action="store_true", help="without odd rows")
    given = parser.parse_args()
    seed, _, only = given.seed.partition(":")
    number = int(seed) if seed else random.randrange(1_000_000)
    print(f"seed {number}", flush=True)
    with server() as dsn:
        tally = asyncio.run(
            soak(dsn, number, int(only) if only else None, given.seconds, quick=given.quick, odd=not given.even)
        )
    count = tally.pop("(bursts)", 0)
    print(f"\n{count} bursts of seed {number}; " + (f"{sum(tally.values())} findings:" if tally else "no findings"))
    for name, times in tally.most_common():
        print(f"  {times:4} times  {name}")
    return 1 if tally else 0


if __name__ == "__main__":
    sys.exit(main())
