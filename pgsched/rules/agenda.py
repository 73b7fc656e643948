"""Decides, and only decides: when a worker looks for due work next, and whether a free place is a reason to look.

Everything here is pure. dispatcher sleeps and looks; claim_pass claims.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

# Seconds that the pass that claims ahead comes later than it could. Fire times are on whole seconds. If the
# lookahead is a whole second too, the pass would come just when held runs start, and be in their way.
ASIDE = 0.1
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Outlook:
    """The database's answer to a look ahead: its clock, and the next things to do."""

    now: datetime
    next_ahead: datetime | None  # the first fire time or due job beyond the horizon
    next_near: datetime | None  # the first within the horizon that this pass did not take
    gated_near: bool  # whether a run within it waits for its schedule's overlap
    next_resume: datetime | None  # when the first pause ends
    running_elsewhere: bool
    orphaned: bool  # the declarations in force are neither ours nor those of any live worker; only in a resync
    forgotten: bool  # the worker's row in workers is gone


@dataclass(frozen=True, slots=True)
class NextLook:
    """When to look next, and the conditions that may change it.

    at: on the monotonic clock, in seconds; None if only a hint is a reason to look.
    taken: something is due but cannot be claimed now, and no hint may come when it can: look again after a while too.
    near: something was left that is due or nearly due.
    gated: it waits for an overlap or a limit.
    lane_full: it waits for a place that this worker lacks.
    full: no lane of the worker has a free place.
    resume_at: when the first pause ends, on the monotonic clock.
    """

    at: float | None = None
    taken: bool = False
    near: bool = False
    gated: bool = True
    lane_full: bool = False
    full: bool = False
    resume_at: float = NEVER

    def is_freed(self, *, gate: bool, passing: bool) -> bool:
        """Whether to look because a run has ended.

        gate: others may have waited for this run in particular, because of an overlap or a limit.
        passing: a pass is under way that may have seen the run live; its own result is not known yet.
        """
        return self.lane_full or (self.near and self.gated) or (gate and (self.near or passing))


def next_look(
    outlook: Outlook,
    *,
    claimed: int,
    cut: bool,
    room: Sequence[bool],
    now: float,
    lookahead: float,
    moment: Callable[[datetime], float],
    others: Sequence[float] = (),
) -> NextLook:
    """When to look next, from the result of the last look.

    claimed: how many runs the pass claimed.
    cut: whether the pass was cut short because its room was used up.
    room: for each lane of the worker, whether it has a free place.
    now, lookahead: seconds, on the monotonic clock.
    moment: gives the moment on that clock when the database's clock has certainly reached an instant.
    others: moments when there is something else to do.
    """
    times = [max(now, each) for each in others if each < NEVER]
    near = outlook.next_near is not None
    full = near and not any(room)
    taken = False
    resume_at = NEVER
    if outlook.next_resume is not None:
        resume_at = moment(outlook.next_resume)
        if resume_at > now:
            times.append(resume_at)
        else:
            taken = True
    if outlook.next_ahead is not None:
        times.append(max(now, moment(outlook.next_ahead) - lookahead + min(ASIDE, lookahead / 2)))
    if outlook.next_near is not None and not full:
        # Not due yet: its overlap blocks it until then, or there is more than one pass takes. Due: the same reasons, or
        # another worker holds it right now, and no hint will come if that worker fails.
        at = moment(outlook.next_near)
        if cut or (at <= now and claimed):
            times.append(now)
        elif at > now:
            times.append(at)
        else:
            taken = True
    return NextLook(min(times, default=None), taken, near, outlook.gated_near, near and not all(room), full, resume_at)
