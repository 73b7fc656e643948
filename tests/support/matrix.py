"""Runs the suite on each version of PostgreSQL and Python, and prints a table: `make matrix`.

By default each version has its part in one run: PostgreSQL 14 with Python 3.11, …, 18 with 3.14. A version that cannot
be had stands in the table with the reason. Exits with 1 if a run failed, and with 2 if there was none.
"""

import argparse
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from support.debian_packages import UnavailableError
from support.versions import FOLDER, POSTGRES, PYTHONS, ROOT, postgres, postgres_version, python, python_version

# Where versions differ most: the schema, plans and rights, the claim, the client and its calls, and JSON's depth.
FAST = (
    *(f"tests/db/test_{name}.py" for name in ("migrate", "sql", "statements", "plans", "roles")),
    *(f"tests/client/test_{name}.py" for name in ("client", "unique", "runs")),
    *(f"tests/worker/claim/test_{name}.py" for name in ("claim_pass", "overlap", "trigger")),
    *("tests/rules/test_options.py", "-m", "not slow"),
)


class Line(NamedTuple):
    """A line of the table. counts: passed, failed, skipped, seconds; or why there is no run."""

    postgres: str
    python: str
    counts: tuple[int, int, int, int] | str


def pairs(servers: Sequence[str], pythons: Sequence[str]) -> list[tuple[str, str]]:
    """As few pairs as have every version in them: the oldest with the oldest, the newest with the newest."""
    if not (servers and pythons):
        return []
    count = max(len(servers), len(pythons))
    return [(servers[n * len(servers) // count], pythons[n * len(pythons) // count]) for n in range(count)]


def available(versions: Sequence[str], get: Callable[[str], Path]) -> tuple[dict[str, Path], dict[str, str]]:
    """The path of each version that can be had, and the reason for each other one."""
    here: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for version in versions:
        try:
            here[version] = get(version)
        except UnavailableError as error:
            missing[version] = str(error)
    return here, missing


def run(programs: Path, interpreter: Path, arguments: Sequence[str]) -> Line:
    """One run of the suite, with its output. It has a line of its own in the table whatever happens to it."""
    server, version = postgres_version(programs), python_version(interpreter)
    print(f"\n=== PostgreSQL {server}, Python {version} ===", flush=True)
    report = FOLDER / f"{server}-{version}.xml"
    report.unlink(missing_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PGSCHED_")}
    begin = time.monotonic()
    done = subprocess.run(
        [str(interpreter), "-m", "pytest", f"--junitxml={report}", *arguments],
        cwd=ROOT, env={**kept, "PGSCHED_TEST_POSTGRES": str(programs)}, check=False,
    )  # fmt: skip
    seconds = round(time.monotonic() - begin)
    if not report.exists():
        return Line(server, version, (0, 1, 0, seconds))
    found = xml.parse(report).getroot().find("testsuite")
    assert found is not None
    failed = int(found.get("failures", 0)) + int(found.get("errors", 0))
    skipped = int(found.get("skipped", 0))
    passed = int(found.get("tests", 0)) - failed - skipped
    return Line(server, version, (passed, failed or int(done.returncode != 0), skipped, seconds))


def table(lines: Sequence[Line]) -> Iterator[str]:
    """The lines of the table, with their head."""
    shape = "{:<12}{:<10}{:>8}{:>8}{:>9}{:>9}"
    yield shape.format("PostgreSQL", "Python", "passed", "failed", "skipped", "seconds")
    for line in lines:
        if isinstance(line.counts, str):
            yield f"{line.postgres:<12}{line.python:<10}NOT AVAILABLE: {line.counts}"
        else:
            yield shape.format(line.postgres, line.python, *line.counts)


def main(given: Sequence[str]) -> int:
    reader = argparse.ArgumentParser(prog="make matrix", description=__doc__, epilog="Other arguments go to pytest.")
    reader.add_argument("--all", action="store_true", help="Run every pair of versions.")
    reader.add_argument("--only", nargs=2, metavar=("POSTGRES", "PYTHON"), help="Run one pair, such as 14 3.11.")
    reader.add_argument("--fast", action="store_true", help="Run the tests of schema, claim and client.")
    reader.add_argument("--jobs", default="2", help="How many processes run tests at once.")
    options, more = reader.parse_known_args(given)
    wanted = ((options.only[0],), (options.only[1],)) if options.only else (POSTGRES, PYTHONS)
    servers, no_servers = available(wanted[0], postgres)
    pythons, no_pythons = available(wanted[1], python)
    chosen = [(s, p) for s in servers for p in pythons] if options.all else pairs(list(servers), list(pythons))
    lines = [Line(version, "-", reason) for version, reason in no_servers.items()]
    lines += [Line("-", version, reason) for version, reason in no_pythons.items()]
    arguments = ["-n", options.jobs, "--dist", "worksteal", *(FAST if options.fast else ()), *more]
    runs: list[Line] = []
    try:
        for server, version in chosen:
            runs.append(run(servers[server], pythons[version], arguments))
    finally:  # also for a Ctrl-C
        print("", *table([*runs, *lines]), sep="\n", flush=True)
    if not runs:
        return 2
    return int(any(line.counts[1] for line in runs))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
