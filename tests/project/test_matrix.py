"""The matrix has every version in a run, and every version that is missing in its table."""

import platform
import sys
from itertools import product
from pathlib import Path

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
    reasons = {"14": "this machine has no npm", "3.14": "Debian lacks it"}

    def get(version):
        if version in reasons:
            raise UnavailableError(reasons[version])
        return tmp_path / version

    assert available(("14", "15"), get) == ({"15": tmp_path / "15"}, {"14": "this machine has no npm"})
    monkeypatch.setattr(matrix, "postgres", get)
    monkeypatch.setattr(matrix, "python", get)
    server = "14          -         NOT AVAILABLE: this machine has no npm"
    python = "-           3.14      NOT AVAILABLE: Debian lacks it"
    for only, lines in (("14", "3.11"), [server]), (("15", "3.14"), [python]), (("14", "3.14"), [server, python]):
        assert matrix.main(["--only", *only]) == 2
        assert capsys.readouterr().out.splitlines()[2:] == lines


def test_a_version_that_is_missing_is_in_the_table_of_the_runs_too(monkeypatch, capsys, tmp_path):
    def get(version):
        if version in ("16", "3.12"):
            raise UnavailableError("gone")
        return tmp_path / version

    monkeypatch.setattr(matrix, "postgres", get)
    monkeypatch.setattr(matrix, "python", get)
    monkeypatch.setattr(matrix, "run", lambda server, python, _: Line(server.name, python.name, (1, 0, 0, 1)))
    assert matrix.main([]) == 0
    shown = [tuple(line.split()[:3]) for line in capsys.readouterr().out.splitlines()[2:]]
    run = [("14", "3.11", "1"), ("15", "3.11", "1"), ("17", "3.13", "1"), ("18", "3.14", "1")]
    assert shown == [*run, ("16", "-", "NOT"), ("-", "3.12", "NOT")]


SUITE = """
import os
import pytest
def test_passes():
    assert {name: value for name, value in os.environ.items() if name.startswith("PGSCHED_")} == {
        "PGSCHED_TEST_POSTGRES": "programs"
    }
def test_fails():
    raise AssertionError
@pytest.mark.skip
def test_is_skipped():
    pass
@pytest.fixture
def broken():
    raise ValueError
def test_has_an_error(broken):
    pass
"""


@pytest.mark.parametrize(
    ("arguments", "counts"),
    [
        ([], (1, 2, 1)),
        (["-k", "passes"], (1, 0, 0)),
        (["-k", "fails"], (0, 1, 0)),
        (["-k", "error"], (0, 1, 0)),
        (["-k", "nothing has this name"], (0, 1, 0)),
        (["--no-such-option"], (0, 1, 0)),
    ],
)
def test_the_line_of_a_run_counts_everything_that_went_wrong(monkeypatch, tmp_path, arguments, counts):
    """Also a pytest that ends badly without a failed test, or without a report."""
    (tmp_path / "test_it.py").write_text(SUITE)
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    monkeypatch.setattr(matrix, "FOLDER", tmp_path)
    monkeypatch.setattr(matrix, "postgres_version", lambda programs: "15.1")
    monkeypatch.setenv("PGSCHED_TEST_DSN", "of this run, not of that one")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # it takes seconds
    line = matrix.run(Path("programs"), Path(sys.executable), ["-p", "no:cacheprovider", *arguments])
    assert (line.postgres, line.python) == ("15.1", platform.python_version())
    assert line.counts[:3] == counts


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
