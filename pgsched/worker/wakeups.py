"""Hints between the parts of a worker: something may be due, a claim may be lost, others' runs may have stalled.

A hint carries no data and decides nothing. Whoever gets it looks at the database.
"""

from __future__ import annotations

import asyncio


class Wakeup:
    """One kind of hint, for the one part that waits for it."""

    def __init__(self) -> None:
        self.asked = False
        self.event = asyncio.Event()  # set by stir() too; a sleep that ends may find that nobody asked

    def ask(self) -> None:
        """Somebody should look now. Asking twice is asking once."""
        self.asked = True
        self.event.set()

    def stir(self) -> None:
        """The time of the next look has changed: whoever sleeps until then should look at it again."""
        self.event.set()

    def take(self) -> bool:
        """Takes the hint and returns whether there was one. Take it before you look: a hint that comes during the look
        costs one more look, and none is ever lost."""
        asked, self.asked = self.asked, False
        self.event.clear()
        return asked


class Wakeups:
    """The four hints of a worker."""

    def __init__(self) -> None:
        self.due = Wakeup()  # dispatcher: something may be due earlier than it thinks
        self.beat = Wakeup()  # heartbeat: a claim may be lost, cancelled or withdrawn
        self.reap = Wakeup()  # reaper: other workers have runs, or a claim may have nobody who knows it
        self.resync = Wakeup()  # listener: its connection may have died unnoticed

    def ask_all(self) -> None:
        """Time went by unseen: everybody looks. The reaper waits, since it may not trust any silence now."""
        self.due.ask()
        self.beat.ask()
        self.resync.ask()
