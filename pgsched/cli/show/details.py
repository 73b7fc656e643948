"""Shows everything about one schedule or one run. Reads nothing itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pgsched.cli.show.output import (
    heading,
    instant,
    local,
    plain,
    print_fields,
    print_json,
    print_table,
    visible,
    write,
)
from pgsched.client.client import Row
from pgsched.client.why import Situation, expression_of
from pgsched.errors import InvalidExpression
from pgsched.expression.daylight import mark
from pgsched.expression.instants import TICK

_NEXT = 10
LAST_LINES = 20  # of a run's log


def show_schedule(row: Row, runs: list[Row], situation: Situation, as_json: bool) -> None:
    """A schedule, its next fire times with the effects of daylight saving, and its newest runs."""
    times, why_none = next_fire_times(row, situation.now)
    if as_json:
        marks = [{"fire_time": time, "local": local(time, row["timezone"]), "mark": mark} for time, mark in times]
        print_json({**row, "next_fire_times": marks, "runs": runs})
        return
    print_fields({name.replace("_", " "): value for name, value in row.items() if name != "interruptions"})
    heading("Next fire times" + (f": none, {why_none}" if why_none else ""))
    if times:
        print_fire_times(row["timezone"], times)
    heading("Last runs" if runs else "Last runs: none")
    if runs:
        print_runs(runs)


def print_fire_times(timezone: str, times: list[tuple[datetime, str | None]]) -> None:
    """Fire times in UTC and on the zone's clock, with the effects of daylight saving if there are any."""
    heads = ["UTC", timezone]
    rows = [[instant(time, exact=True), local(time, timezone)] for time, _ in times]
    if any(mark for _, mark in times):
        heads.append("daylight saving")
        rows = [[*row, mark or ""] for row, (_, mark) in zip(rows, times, strict=True)]
    print_table(heads, rows)


def next_fire_times(row: Row, now: datetime) -> tuple[list[tuple[datetime, str | None]], str | None]:
    """The next fire times of a schedule with their marks, or why there are none.

    An executor that computes its own fire times is not asked.
    """
    if row["status"] in ("finished", "invalid"):
        return [], f"it is {row['status']}"
    try:
        expression = expression_of(row)
    except InvalidExpression as error:
        return [], str(error)
    after = now if row["next_run"] is None else row["next_run"] - TICK
    if row["status"] == "paused":  # fire times during the pause are skipped
        after = max(after, now if row["paused_until"] is None else max(now, row["paused_until"] - TICK))
    after = max(after, row["starts_at"] - TICK) if row["starts_at"] else after
    most = _NEXT if row["max_runs"] is None else min(_NEXT, max(0, row["max_runs"] - row["run_count"]))
    times: list[tuple[datetime, str | None]] = []
    while len(times) < most and (coming := expression.next(after)) is not None:
        if row["ends_at"] is not None and coming > row["ends_at"]:
            break
        times.append((coming, mark(expression, coming)))
        after = coming
    return times, None if times else "no fire time is left"


def print_runs(rows: list[Row]) -> None:
    """Runs as a table, one a line."""
    heads = ["id", "what", "fire time", "status", "attempt", "worker", "started", "took", "why"]
    print_table(
        heads,
        [
            [
                row["id"],
                row["schedule"] or row["entrypoint"],
                instant(row["fire_time"], exact=True),
                row["status"],
                _attempt(row),
                str(row["worker"])[:8] if row["worker"] else None,
                instant(row["started_at"]),
                took(row),
                why(row),
            ]
            for row in rows
        ],
    )


def _attempt(row: Row) -> str | None:
    if not row["attempt"]:
        return None
    return f"{row['attempt']}/{row['max_attempts']}" if row["max_attempts"] else str(row["attempt"])


def took(row: Row) -> str | None:
    """How long the run's last attempt took."""
    if row["started_at"] is None or row["finished_at"] is None:
        return None
    seconds = (row["finished_at"] - row["started_at"]).total_seconds()
    return f"{max(seconds, 0):.3f}s" if seconds < 60 else plain(timedelta(seconds=round(seconds)))


def why(row: Row) -> str | None:
    """Why a run was skipped or cancelled, its progress while it runs, or its last error."""
    if row["status"] == "skipped":
        count = row["skipped_count"] or 1
        through = f", {count} fire times through {instant(row['skipped_through'], exact=True)}" if count > 1 else ""
        return f"{row['reason']}{through}" + (f": {row['detail']}" if row["detail"] else "")
    if row["status"] == "running" and row.get("progress"):
        return progress(row)
    error = row["error"]
    return row["reason"] or (str(error).strip().split("\n")[0] if error else None)


def print_end(row: Row) -> None:
    """How a run has ended, in one line."""
    errors = row["errors"]
    last = errors[-1] if isinstance(errors, list) and errors and row["status"] != "succeeded" else None
    error = f"{last.get('type')}: {last.get('message')}" if isinstance(last, dict) else None
    because = str(row["reason"] or error or "").strip().split("\n")[0]
    lasted = f" after {took(row)}" if took(row) else ""
    write(visible(f"{row['id']} {row['status']}{lasted}" + (f": {because}" if because else "")))


def show_run(row: Row, lines: list[Row], as_json: bool) -> None:
    """A run: its fields, its result, its attempts, their errors with tracebacks, and its last log lines."""
    if as_json:
        print_json({**row, "log": lines})
        return
    errors, attempts = row.pop("errors"), row.pop("attempts")
    row["progress"] = progress(row)
    print_fields({name.replace("_", " "): value for name, value in row.items()})
    if attempts:
        heading("Attempts")
        print_attempts(attempts)
    for error in errors if isinstance(errors, list) else [errors]:
        _print_error(error)
    if lines:
        more = len(lines) > LAST_LINES
        heading(f"Log, its last {LAST_LINES} lines (all: pgsched runs logs {row['id']})" if more else "Log")
        for line in lines[-LAST_LINES:]:
            print_line(line)


def print_attempts(attempts: list[Row]) -> None:
    """Attempts as a table, one a line."""
    print_table(
        ["attempt", "worker", "started", "ended", "how", "why"],
        [
            [
                each["attempt"],
                str(each["worker"])[:8] if each["worker"] else None,
                instant(each["started_at"], exact=True),
                instant(each["ended_at"], exact=True),
                str(each["end"]).replace("_", " "),
                str(each["why"] or "").strip().split("\n")[0],
            ]
            for each in attempts
        ],
    )


def print_line(line: Row) -> None:
    """A line of a run's log: time, attempt, level and text."""
    at = f"{line['at'].astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3]
    write(visible(f"{at}Z #{line['attempt']} {line['level']:<7} {line['text']}"))


def progress(row: Row) -> str | None:
    """The progress that a run has reported."""
    said = row["progress"]
    if not isinstance(said, dict):
        return None
    done, total = said.get("done"), said.get("total")
    if total is None:
        return f"{_number(done)} done"
    share = f" ({done / total:.0%})" if total else ""
    return f"{_number(done)} of {_number(total)}{share}"


def _number(value: Any) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:g}"


def _print_error(error: Any) -> None:
    if not isinstance(error, dict):
        heading(f"Error: {visible(plain(error))}")
        return
    heading(
        f"Attempt {visible(plain(error.get('attempt')))} at {visible(plain(error.get('at')))}: "
        f"{visible(plain(error.get('type')))}: {visible(plain(error.get('message')))}"
    )
    for line in str(error.get("traceback") or "").splitlines():
        write(visible(line))
