"""Everything public says that it comes from pgsched, wherever it is defined."""

import pickle

import pytest

import pgsched
from pgsched import testing


@pytest.mark.parametrize(("module", "name"), [(m, name) for m in (pgsched, testing) for name in m.__all__])
def test_public_names(module, name):
    assert getattr(module, name).__module__ == module.__name__
    assert pickle.loads(pickle.dumps(getattr(module, name))) is getattr(module, name)
