"""The matrix has every version in a run, and every version that is missing in its table."""

from itertools import product

import pytest
from support import matrix
from support.debian_packages import UnavailableError
from support.matrix import Line, available, pairs
from support.versions import POSTGRES, PYTHONS


def test_by_default_the_oldest_meet_and_the_newest():
    chosen = pairs(POSTGRES, PYTHONS)
    assert (chosen[0], chosen[-1]) == (("14", "3.11"), ("18", "3.14"))


@pytest.mark.parametrize(("servers", "pythons"), [*product(range(1, 6), range(1, 6))])
def test_each_version_has_its_part_in_the_fewest_runs(servers, pythons):
    chosen = pairs(POSTGRES[:servers], [*PYTHONS, "3.15"][:pythons])
    assert len(chosen) == max(servers, pythons) == len(set(chosen))
    assert {server for server, _ in chosen} == set(POSTGRES[:servers])
    assert len({python for _, python in chosen}) == pythons


def test_a_version_that_is_missing_is_in_the_table_with_its_reason(monkeypatch, capsys, tmp_path):
    def get(version):
        if version == "14":
            raise UnavailableError("this machine has no npm")
        return tmp_path / version

    assert available(("14", "15"), get) == ({"15": tmp_path / "15"}, {"14": "this machine has no npm"})
    monkeypatch.setattr(matrix, "postgres", get)
    monkeypatch.setattr(matrix, "python", get)
    assert matrix.main(["--only", "14", "3.11"]) == 2
    assert "14          -         NOT AVAILABLE: this machine has no npm" in capsys.readouterr().out.splitlines()


def test_one_failed_run_fails_the_matrix(monkeypatch, capsys, tmp_path):
    lines = iter([Line("15.1", "3.11.7", (9, 1, 0, 5)), Line("16.1", "3.11.7", (10, 0, 2, 6))])
    asked = []
    monkeypatch.setattr(matrix, "POSTGRES", ("15", "16"))
    monkeypatch.setattr(matrix, "PYTHONS", ("3.11",))
    monkeypatch.setattr(matrix, "postgres", lambda version: tmp_path / version)
    monkeypatch.setattr(matrix, "python", lambda version: tmp_path / version)
    monkeypatch.setattr(matrix, "run", lambda *given: asked.append(given) or next(lines))
    assert matrix.main(["--jobs", "3", "--fast", "-x"]) == 1
    assert [given[0].name for given in asked] == ["15", "16"]
    assert asked[0][2] == ["-n", "3", "--dist", "worksteal", *matrix.FAST, "-x"]
    shown = capsys.readouterr().out.split()
    assert shown[-6:] == ["16.1", "3.11.7", "10", "0", "2", "6"]
