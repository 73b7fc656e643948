"""The lines and the progress of one attempt, kept until they are written."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


def clean(text: str) -> str:
    """The text without NUL and lone surrogates, which PostgreSQL cannot store."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class Line:
    """One line that a run logged. at: by the worker's clock, for people."""

    at: datetime
    level: str
    text: str


@dataclass(frozen=True, slots=True)
class Said:
    """What of a journal is not written yet: lines, the first of which has this number, and progress where it is new."""

    number: int
    lines: list[Line]
    progress: tuple[float, float | None] | None

    @property
    def last(self) -> int:
        """The number of its last line, or of the one before it where it has none."""
        return self.number + len(self.lines) - 1


class Journal:
    """What one attempt says while it runs: lines and progress. Any thread may write; the worker reads, and forgets what
    is written.

    At most LIMIT characters in LINES lines are kept; what is said beyond them is counted, and told when it is closed.
    """

    LIMIT = 65_536
    LINES = 20_000
    LONGEST = 8_192  # characters of one line; a longer one is cut

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a garbage collection in here may call what logs
        self._lines: list[Line] = []
        self._written = 0  # lines, from the first on
        self._size = 0
        self._closed = False
        self._progress_written: tuple[float, float | None] | None = None
        self._last_progress: tuple[float, float | None] | None = None  # once it is closed
        self.dropped = 0
        self.progress: tuple[float, float | None] | None = None

    def add(self, text: str, level: str) -> None:
        """Takes a text of one or more lines."""
        at = datetime.now(UTC)
        with self._lock:
            if self._closed:
                return
            for line in text.splitlines():
                kept = line if len(line) <= self.LONGEST else f"{line[: self.LONGEST - 1]}…"
                if self._size + len(kept) > self.LIMIT or self._written + len(self._lines) >= self.LINES:
                    self.dropped += 1
                else:
                    self._size += len(kept) + 1
                    self._lines.append(Line(at, level, kept))

    def drop(self, lines: int) -> None:
        """Counts lines that are not even handed over, because there are too many."""
        with self._lock:
            self.dropped += lines

    def close(self) -> None:
        """The attempt is over: says how many lines there would have been, and takes no more."""
        with self._lock:
            if self.dropped and not self._closed:
                told = f"{self.dropped:,} more lines were dropped: of an attempt 64 KiB are kept."
                self._lines.append(Line(datetime.now(UTC), "warning", told))
            if not self._closed:
                self._last_progress = self.progress
            self._closed = True

    @property
    def unwritten(self) -> bool:
        """Whether there is anything to be written."""
        return bool(self._lines) or self._latest != self._progress_written

    @property
    def _latest(self) -> tuple[float, float | None] | None:
        # A thread that is left behind may go on saying it, and would never be done with.
        return self._last_progress if self._closed else self.progress

    def read(self, size: int = LIMIT) -> Said:
        """What is not written yet, oldest first; lines of about `size` characters at most, one in any case."""
        with self._lock:
            lines: list[Line] = []
            taken = 0
            for line in self._lines:
                taken += len(line.text) + 1
                if taken > size and lines:
                    break
                lines.append(line)
            progress = self._latest
            return Said(self._written + 1, lines, progress if progress != self._progress_written else None)

    def wrote(self, said: Said) -> None:
        """It is written, and forgotten here."""
        with self._lock:
            del self._lines[: max(0, said.last - self._written)]
            self._written = max(self._written, said.last)
            if said.progress is not None:
                self._progress_written = said.progress


def finite(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"run.progress() takes finite numbers, not {value!r}.")
    return number
