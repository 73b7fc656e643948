"""Reads from a run's row how each of its attempts ended. Pure.

The row's own columns hold the last attempt, `errors` the failed ones, and `stops` others that were not the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

_BY_TYPE = {
    "Timeout": "timed_out",
    "WorkerLost": "worker_lost",
    "pgsched.RetryLater": "retry_later",
    "pgsched.errors.RetryLater": "retry_later",  # by an older version
}


def attempts_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The attempts of a run, in the order of their ends: attempt, worker, started_at, ended_at, end, why.

    end: running, succeeded, failed, timed_out, retry_later (it raised RetryLater), discarded (it raised Discard),
        cancelled, worker_lost, or given_back (by a drain, or by RetryLater(counts=False); it did not count, and another
        attempt with its number followed).
    why: the error or the reason.

    Attempts that an older version recorded have no worker and no started_at.
    """
    errors, stops = _entries(row["errors"]), _entries(row["stops"])
    found = [_entry(each, _BY_TYPE.get(str(each.get("type")), "failed"), _error(each)) for each in errors]
    found += [_entry(each, str(each.get("end")), each.get("reason")) for each in stops]
    found.sort(key=lambda each: each["ended_at"] or datetime.min.replace(tzinfo=UTC))
    if row["attempt"] and not _is_listed(row, errors, stops):
        found.append(_last(row))
    return found


def _is_listed(row: Mapping[str, Any], errors: list[dict[str, Any]], stops: list[dict[str, Any]]) -> bool:
    """Whether the lists contain the attempt that the row counted last."""
    if row["status"] in ("running", "succeeded"):
        return False
    ended = errors[-1:] + [stop for stop in stops if stop.get("final")]
    return row["status"] == "queued" or any(each.get("attempt") == row["attempt"] for each in ended)


def _last(row: Mapping[str, Any]) -> dict[str, Any]:
    end = row["status"]
    if end == "cancelled" and row["cancel_requested_at"] is None:
        end = "discarded"
    return {
        "attempt": row["attempt"],
        "worker": None if row["worker"] is None else str(row["worker"]),
        "started_at": row["started_at"],
        "ended_at": row["finished_at"],
        "end": end,
        "why": row["reason"],
    }


def _entries(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _entry(entry: Mapping[str, Any], end: str, why: Any) -> dict[str, Any]:
    return {
        "attempt": entry.get("attempt"),
        "worker": entry.get("worker"),
        "started_at": _instant(entry.get("started_at")),
        "ended_at": _instant(entry.get("at")),
        "end": end,
        "why": why,
    }


def _error(entry: Mapping[str, Any]) -> str:
    return f"{entry.get('type')}: {entry.get('message')}"


def _instant(text: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return found.astimezone(UTC) if found.tzinfo is not None else None
