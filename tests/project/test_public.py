"""Everything public says that it comes from pgsched, wherever it is defined."""

import pickle

import pytest

import pgsched


@pytest.mark.parametrize("name", pgsched.__all__)
def test_public_names(name):
    assert getattr(pgsched, name).__module__ == "pgsched"
    assert pickle.loads(pickle.dumps(getattr(pgsched, name))) is getattr(pgsched, name)
