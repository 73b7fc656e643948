"""A few bursts of the random model, always the same ones; see model/__init__.py. `make soak` runs others."""

import pytest
from model import burst as bursts
from model.plan import generate

SEED = 12
# These hold already; the others follow with their fixes.
HELD = {
    "no claim is called twice",
    "each call has a claim",
    "no two calls of a run go on at once",
    "no function is called before its fire time",
    "nobody but the holder ends a claim, except a reaper",
    "a claim names the worker that made it",
    "tokens only grow and never repeat",
    "the runs of a declared schedule are called by the code that declares it",
    "a run that names an application is called by its code",
    "no run has more attempts than its limit",
    "a transaction of a run is committed once, if and only if the run has succeeded",
    "no row is paid for whose run is gone",
}


@pytest.mark.slow
@pytest.mark.parametrize("number", (1, 2))
async def test_the_invariants_hold_after_a_burst_of_everything(dsn, number):
    world, found = await bursts.run(dsn, generate(SEED, number, length=4.0, quick=True))
    found = [finding for finding in found if finding.name in HELD]
    for line in world.done:  # shown if the test fails
        print(line)
    assert not found, "\n".join(f"{SEED}:{number}  {finding}" for finding in found)


def test_a_seed_and_a_number_always_draw_the_same_burst():
    assert generate(7, 3) == generate(7, 3)
    assert generate(7, 3) != generate(7, 4)
