"""Hints between the parts of a worker: something may be due, a claim may be lost, others' runs may have stalled.

A hint carries no data and decides nothing. The part that gets it looks at the database.
"""

from __future__ import annotations

import asyncio


class Wakeup:
    """One kind of hint, for the one part that waits for it."""

    def __init__(self) -> None:
        self.asked = False
        self.event = asyncio.Event()  # stir() sets it too, so a sleep may end although nobody asked

    def ask(self) -> None:
        """Asks for a look now. Asking twice is the same as asking once."""
        self.asked = True
        self.event.set()

    def stir(self) -> None:
        """Ends the sleep without asking for a look: the time of the next look has changed."""
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
        self.reap = Wakeup()  # reaper: other workers have runs, or a claim may be known to nobody
        self.resync = Wakeup()  # listener: its connection may have died unnoticed

    def ask_all(self) -> None:
        """Time went by unseen: asks all parts to look, but not the reaper, which must not trust any silence now."""
        self.due.ask()
        self.beat.ask()
        self.resync.ask()
