"""A few bursts of the random model, always the same ones; see model/__init__.py. `make model` runs others."""

import pytest
from model import burst as bursts
from model.plan import generate

SEED = 12


@pytest.mark.slow
@pytest.mark.parametrize("number", (1, 2, 3))
async def test_the_invariants_hold_after_a_burst_of_everything(dsn, number):
    world, found = await bursts.run(dsn, generate(SEED, number, length=4.0, quick=True))
    for line in world.done:  # shown if the test fails
        print(line)
    assert not found, "\n".join(f"{SEED}:{number}  {finding}" for finding in found)


def test_a_seed_and_a_number_always_draw_the_same_burst():
    assert generate(7, 3) == generate(7, 3)
    assert generate(7, 3) != generate(7, 4)
