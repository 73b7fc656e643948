"""Measures what pgsched promises of its speed, each part beside its bare limit in the same run.

    python benchmarks/bench.py                      all parts, some seven minutes
    python benchmarks/bench.py --only drain lag     some of them
    python benchmarks/bench.py --quick              small sizes: does it work at all

Only figures of one run can be compared, as ratios; see README.md beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
from queueing import enqueue
from rig import Fault, Figure, Rig, percentile, rig, spread, wait_for

from pgsched import expression


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    lag_seconds: int = 60
    idle_seconds: int = 120
    herds: tuple[int, ...] = (100, 1_000, 10_000)
    drain: int = 10_000
    triggers: int = 500
    enqueued: int = 2_000
    batch: int = 10_000
    kills: int = 5
    fire_times: int = 20_000


QUICK = Sizes(
    lag_seconds=5,
    idle_seconds=5,
    herds=(100,),
    drain=1_000,
    triggers=20,
    enqueued=50,
    batch=500,
    kills=1,
    fire_times=500,
)


def lag(rig: Rig, sizes: Sizes) -> list[Figure]:
    """How late a schedule of every second starts, beside a bare timer every second."""
    rig.fresh()
    count = sizes.lag_seconds
    with rig.worker(), rig.bare("every_second", count) as timer:
        rig.rows("select pgsched.create_schedule('every-second', 'clocks', '* * * * * *')")
        time.sleep(count)  # without a look meanwhile, which would be in the way
        rig.until("select count(*) >= %s from pgsched.runs where finished_at is not null", count, limit=count + 30)
        bare = [seconds * 1000 for seconds in timer.answer()]
    found = rig.rows(
        "select extract(epoch from started_at - fire_time)::float8 * 1000,"
        " (result ->> 'wall')::float8 * 1000 - extract(epoch from fire_time)::float8 * 1000, fire_time"
        " from pgsched.runs where status = 'succeeded' order by fire_time limit %s", count,
    )  # fmt: skip
    span = round((found[-1][2] - found[0][2]).total_seconds()) + 1
    figures = spread("lag", "recorded", [row[0] for row in found], bare)
    if rig.log is not None:  # then the server is on this machine, and its clock is the function's too
        figures += spread("lag", "by the function's clock", [row[1] for row in found], bare)
    return [*figures, Figure("lag", "fired", len(found), f"of {span}")]


def herd(rig: Rig, sizes: Sizes) -> list[Figure]:
    """How late the starts are where many schedules are due at one instant, beside as many bare timers."""
    figures: list[Figure] = []
    for count in sizes.herds:
        rig.fresh()
        with rig.worker():
            ahead = 5 + count // 2000
            rig.rows(
                "insert into pgsched.schedules (name, entrypoint, expression, next_run)"
                " select 'herd-' || n, 'nothing', '@yearly', date_trunc('second', now()) + %s * interval '1 second'"
                " from generate_series(1, %s) n", ahead, count,
            )  # fmt: skip
            time.sleep(ahead + 1)  # without a look meanwhile, which would be in the way
            rig.until("select count(*) = %s from pgsched.runs where status = 'succeeded'", count, pause=0.5)
        with rig.bare("herd", count) as timers:
            bare = [seconds * 1000 for seconds in timers.answer()]
        late = rig.rows("select extract(epoch from started_at - fire_time)::float8 * 1000 from pgsched.runs")
        figures += spread("herd", f"of {count:,}:", [row[0] for row in late], bare)
    return [replace(figure, name=figure.name.replace("max", "last")) for figure in figures]


def idle(rig: Rig, sizes: Sizes) -> list[Figure]:
    """What a worker with 100 schedules, none due, asks of the database and of the processor."""
    if rig.log is None:
        raise Fault("statements are counted in the log of a server of our own only")
    import psutil  # comes with the extra `embedded`

    rig.fresh()
    rig.rows(
        "insert into pgsched.schedules (name, entrypoint, expression)"
        " select 'far-' || n, 'nothing', '@at 2099-01-01T00:00:00Z' from generate_series(1, 100) n"
    )
    with rig.worker() as worker:
        name = rig.session_of(worker)
        rig.until("select count(*) = 100 from pgsched.schedules where next_run is not null")
        time.sleep(5)
        with logged(rig):
            start, cpu = rig.log.stat().st_size, sum(psutil.Process(worker.pid).cpu_times()[:2])
            time.sleep(sizes.idle_seconds)
            cpu = sum(psutil.Process(worker.pid).cpu_times()[:2]) - cpu
        with rig.log.open(errors="replace") as log:
            log.seek(start)
            said = re.findall(rf"^{name}\|LOG:  (?:statement|execute [^:]*): ", log.read(), re.MULTILINE)
    minutes = sizes.idle_seconds / 60
    return [
        Figure("idle", "statements", len(said) / minutes, "a minute"),
        Figure("idle", "statements in all", len(said), f"in {sizes.idle_seconds} s"),
        Figure("idle", "processor", cpu * 1000 / minutes, "ms a minute"),
    ]


@contextlib.contextmanager
def logged(rig: Rig) -> Iterator[None]:
    """Has the server log every statement with its session's name, for as long as the block runs."""
    wanted = {"log_statement": "'all'", "log_line_prefix": "'%a|'"}
    try:
        for name, value in wanted.items():
            rig.connection.execute(f"alter system set {name} = {value}")
        rig.connection.execute("select pg_reload_conf()")
        time.sleep(1)
        yield
    finally:
        for name in wanted:
            rig.connection.execute(f"alter system reset {name}")
        rig.connection.execute("select pg_reload_conf()")


def drain(rig: Rig, sizes: Sizes) -> list[Figure]:
    """How fast runs that are already due are worked off, beside a bare loop that claims and finishes them."""
    figures: list[Figure] = []
    for count in (1, 2):
        bare, bare_written = drained(rig, sizes.drain, count, lambda: rig.bare("drain", 0))
        rate, written = drained(rig, sizes.drain, count, lambda: rig.worker(ready=False))
        case = f"{count} worker{'s' * (count > 1)}"
        figures += [
            Figure("drain", f"{case}, to the last end", rate, "runs/s", bare),
            Figure("drain", f"{case}, to the last write", written, "runs/s", bare_written),
        ]
    return figures


def drained(
    rig: Rig, total: int, count: int, process: Callable[[], contextlib.AbstractContextManager[Any]]
) -> tuple[float, float]:
    """Runs a second from the first claim to the last run's end, and to the last run's end being written."""
    rig.fresh()
    rig.rows("insert into pgsched.runs (entrypoint) select 'nothing' from generate_series(1, %s)", total)
    with contextlib.ExitStack() as stack:
        # All processes claim at one instant: neither interpreter starts nor a head start count.
        release = stack.enter_context(rig.gate(count))
        for _ in range(count):
            stack.enter_context(process())
        release()
        rig.connection.execute("set enable_seqscan = off")  # this look is not to cost what it looks at
        written = rig.until(
            "select case when not exists (select from pgsched.runs where status = 'queued')"
            " and not exists (select from pgsched.runs where status = 'running') then clock_timestamp() end",
            pause=0.005,
        )
        rig.connection.execute("reset enable_seqscan")
    first, last, done = rig.rows(
        "select min(claimed_at), max(finished_at), count(*) filter (where status = 'succeeded') from pgsched.runs"
    )[0]
    if done != total:
        raise Fault(f"{done} of {total} runs succeeded")
    return total / (last - first).total_seconds(), total / (written - first).total_seconds()


def trigger(rig: Rig, sizes: Sizes) -> list[Figure]:
    """From a trigger on another connection to the start of its run, beside a bare NOTIFY to a bare listener."""
    rig.fresh()
    called, entered, recorded = [], [], []
    with rig.worker():
        rig.rows("select pgsched.create_schedule('far', 'clocks', '@at 2099-01-01T00:00:00Z')")
        rig.until("select next_run is not null from pgsched.schedules")
        for _ in range(sizes.triggers):
            called.append(time.monotonic())
            run = rig.value("select pgsched.trigger('far')")
            time.sleep(0.01)  # this client looks only after the start, as a rule
            ended = "select finished_at is not null from pgsched.runs where id = %s"
            rig.until(ended, run, pause=0.002)
            late, at = rig.rows(
                "select extract(epoch from started_at - fire_time)::float8 * 1000, (result ->> 'monotonic')::float8"
                " from pgsched.runs where id = %s", run,
            )[0]  # fmt: skip
            recorded.append(late)
            entered.append(at)
    bare = notified(rig, sizes.triggers)
    seen = [(at - call) * 1000 for call, at in zip(called, entered, strict=True)]
    return [
        *spread("trigger", "call to function", seen, bare),
        *spread("trigger", "fire_time to started_at", recorded, bare),
    ]


def notified(rig: Rig, count: int) -> list[float]:
    """Milliseconds from the call of NOTIFY to its arrival in another process."""
    sent = []
    with rig.bare("listen", count) as listener:
        listener.said("listening")
        for _ in range(count):
            sent.append(time.monotonic())
            rig.connection.execute("notify bench")
            time.sleep(0.01)
        return [(at - call) * 1000 for call, at in zip(sent, listener.answer(), strict=True)]


def sigkill(rig: Rig, sizes: Sizes) -> list[Figure]:
    """From the SIGKILL of a worker in the middle of a job to the job's next attempt in another worker."""
    rig.fresh()
    took: list[float] = []
    with contextlib.ExitStack() as stack:
        workers = {worker.pid: worker for worker in (stack.enter_context(rig.worker()) for _ in range(2))}
        stall = rig.value("select max(stall_timeout) from pgsched.workers")
        # Until then nobody reaps: after an outage of the server every owner gets as long to beat again.
        rig.until("select now() - pg_postmaster_start_time() > %s + interval '2 seconds'", stall, limit=90)
        for number in range(sizes.kills):
            run = rig.value("select pgsched.enqueue('sleeper')")
            time.sleep(2 + 0.37 * number)  # somewhere between two beats
            victim = workers.pop(noted(rig, run, 1)["pid"])
            killed = time.monotonic()
            victim.kill()
            took.append(noted(rig, run, 2)["monotonic"] - killed)
            another = stack.enter_context(rig.worker())
            workers[another.pid] = another
    return [
        Figure("sigkill", "kill to next attempt, median", percentile(took, 0.5), "s"),
        Figure("sigkill", "kill to next attempt, max", max(took), f"s of {len(took)}"),
    ]


def noted(rig: Rig, run: int, attempt: int) -> dict[str, Any]:
    """What a job noted when its attempt began."""

    def look() -> dict[str, Any] | None:
        told = [json.loads(line) for line in rig.notes.read_text().splitlines()] if rig.notes.exists() else []
        return next((one for one in told if (one["run"], one["attempt"]) == (run, attempt)), None)

    return wait_for(look, f"attempt {attempt} of run {run}", 120)


EXPRESSIONS = (
    ("* * * * *", "UTC"),
    ("*/5 * * * *", "Europe/Paris"),
    ("30 2 * * *", "Europe/Paris"),
    ("0 9 * * MON-FRI", "America/New_York"),
    ("* * * * * */10", "UTC"),
    ("0 0 13 * FRI", "UTC"),
    ("0 0 LW * *", "Australia/Lord_Howe"),
    ("0 0 29 2 *", "UTC"),
)


def expressions(sizes: Sizes) -> list[Figure]:
    """How many next fire times a second an expression gives that is kept, and one that is read anew each time."""
    reused, anew = [], []
    for text, zone in EXPRESSIONS:
        parsed = expression.parse(text, zone)
        reused.append(rate(sizes.fire_times, lambda after, kept=parsed: kept.next(after)))
        anew.append(rate(sizes.fire_times // 20, lambda after, of=(text, zone): unread(*of).next(after)))
    return [
        *(
            Figure("expressions", f"{text} ({zone}), {how}", value, "/s")
            for how, values in (("kept", reused), ("from the text", anew))
            for (text, zone), value in zip(EXPRESSIONS, values, strict=True)
        ),
        Figure("expressions", "kept, median", percentile(reused, 0.5), "/s"),
        Figure("expressions", "kept, slowest", min(reused), "/s"),
        Figure("expressions", "from the text, median", percentile(anew, 0.5), "/s"),
        Figure("expressions", "from the text, slowest", min(anew), "/s"),
    ]


def unread(text: str, zone: str) -> expression.Expression:
    """An expression that was read just now, whatever was read before."""
    expression._parse.cache_clear()
    return expression.parse(text, zone)


def rate(count: int, following: Callable[[datetime], datetime | None]) -> float:
    """Fire times a second of this thread's processor time, the best of three runs from 2027 on."""
    start = after = datetime(2027, 1, 1, tzinfo=UTC)
    rates = []
    for _ in range(3):
        began = time.thread_time()
        for _ in range(count):
            after = following(after) or start  # the rarest come to an end in 2099
        rates.append(count / (time.thread_time() - began))
    return max(rates)


# Those that need a server, and those that need nothing.
PARTS: dict[str, Callable[[Rig, Sizes], list[Figure]]] = {
    "lag": lag, "herd": herd, "idle": idle, "drain": drain, "trigger": trigger, "sigkill": sigkill,
    "enqueue": lambda rig, sizes: enqueue(rig, sizes.enqueued, sizes.batch),
}  # fmt: skip
BARE_PARTS: dict[str, Callable[[Sizes], list[Figure]]] = {"expressions": expressions}


def shown(value: float) -> str:
    """A number with three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def line(part: str, figures: list[Figure]) -> str:
    """A part in one line."""
    told = [f"{f.name} {shown(f.value)} {f.unit}" + (f" ({f.ratio:.2f} x bare)" if f.ratio else "") for f in figures]
    return f"{part}: {'; '.join(told)}"


def table(figures: list[Figure]) -> str:
    """All figures in columns."""
    rows = [("part", "figure", "value", "unit", "bare", "ratio")]
    for f in figures:
        bare = ("", "") if f.bare is None or f.ratio is None else (shown(f.bare), f"{f.ratio:.2f}")
        rows.append((f.part, f.name, shown(f.value), f.unit, *bare))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    right = (False, False, True, False, True, True)
    return "\n".join(
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in rows
    )


def surroundings(rig: Rig | None) -> dict[str, Any]:
    """What the figures depend on and a reader may want to know."""
    asked = ("server_version", "fsync", "synchronous_commit", "shared_buffers")
    server = {
        "server": {name: rig.value(f"show {name}") for name in asked},
        "settings": rig.settings,
    } if rig else {}  # fmt: skip
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "pgsched": version("pgsched"),
        "python": platform.python_version(),
        "psycopg": psycopg.__version__,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        **server,
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    known = [*BARE_PARTS, *PARTS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=known, default=known, metavar="NAME", help=", ".join(known))
    parser.add_argument("--seconds", type=int, help="how long lag and idle measure (default 60 and 120)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and surroundings there")
    parser.add_argument("--dsn", help="a server to use instead of an embedded one; in a schema of our own")
    parser.add_argument("--quick", action="store_true", help="small sizes, whose figures mean nothing")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting for the workers")
    given = parser.parse_args()
    if any("=" not in pair for pair in given.set):
        parser.error("--set takes NAME=VALUE, such as max_running=2000")
    return given


def leave(*_: object) -> None:
    """Ends the benchmark so that what it started is ended too; a second signal must not cut that short."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main() -> int:
    """Measures the parts one after the other; one that fails is told, and the others go on."""
    given = arguments()
    signal.signal(signal.SIGTERM, leave)
    sizes = QUICK if given.quick else Sizes()
    if given.seconds:
        sizes = replace(sizes, lag_seconds=given.seconds, idle_seconds=given.seconds)
    figures: list[Figure] = []
    faults: dict[str, str] = {}
    settings = dict(pair.split("=", 1) for pair in given.set)
    with rig(given.dsn, settings) if PARTS.keys() & given.only else contextlib.nullcontext() as made:
        around = surroundings(made)
        for part in given.only:
            try:
                found = PARTS[part](made, sizes) if made and part in PARTS else BARE_PARTS[part](sizes)
            except (Fault, psycopg.Error, OSError) as fault:
                faults[part] = str(fault)
                print(f"{part}: not measured: {fault}", flush=True)
            else:
                figures += found
                print(line(part, found), flush=True)
    print(f"\n{table(figures)}")
    if given.json:
        told = {**around, "figures": [asdict(f) | {"ratio": f.ratio} for f in figures], "faults": faults}
        given.json.write_text(json.dumps(told, indent=2) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
