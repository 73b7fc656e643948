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
    """The unwritten part of a journal.

    number: the number of the first line.
    lines: the lines.
    progress: the progress, or None if it is not new.
    """

    number: int
    lines: list[Line]
    progress: tuple[float, float | None] | None

    @property
    def last(self) -> int:
        """The number of its last line; without lines, `number` - 1."""
        return self.number + len(self.lines) - 1


class Journal:
    """The lines and the progress of one attempt while it runs. Any thread may write; the worker reads, and deletes
    written lines.

    At most LIMIT characters in LINES lines are kept. Further lines are dropped and counted; a final line says how many.
    """

    LIMIT = 65_536
    LINES = 20_000
    LONGEST = 8_192  # characters of one line; a longer one is cut

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a garbage collection in here may call code that logs
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
        """Counts lines that were dropped before they reached the journal."""
        with self._lock:
            self.dropped += lines

    def close(self) -> None:
        """Ends the journal when the attempt is over: adds the number of dropped lines, and takes no more."""
        with self._lock:
            if self.dropped and not self._closed:
                text = f"{self.dropped:,} more lines were dropped: at most 64 KiB are kept per attempt."
                self._lines.append(Line(datetime.now(UTC), "warning", text))
            if not self._closed:
                self._last_progress = self.progress
            self._closed = True

    @property
    def unwritten(self) -> bool:
        """Whether there is anything to write."""
        return bool(self._lines) or self._latest != self._progress_written

    @property
    def _latest(self) -> tuple[float, float | None] | None:
        # A thread that is left behind may keep reporting progress, and there would be no end to the writing.
        return self._last_progress if self._closed else self.progress

    def read(self, size: int = LIMIT) -> Said:
        """The unwritten lines, oldest first: at most about `size` characters, but at least one line."""
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
        """Deletes lines that were written."""
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
