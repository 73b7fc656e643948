"""Prints the answer of `pgsched schedules show NAME --at MOMENT`. client.why decides the answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

from pgsched.cli.show.moments import Moment
from pgsched.cli.show.output import instant, local, print_json, say, write
from pgsched.client.client import Row
from pgsched.client.why import MOST, Fate, Situation, around, fates


@dataclass(frozen=True, slots=True)
class Answer:
    """The question, and the rows that were read for it."""

    row: Row
    moment: Moment
    start: datetime
    through: datetime
    records: list[Row]
    situation: Situation


def show_answer(answer: Answer, as_json: bool) -> None:
    """Each fire time with its fate; if there is none, the fire times around the moment."""
    row, zone = answer.row, answer.row["timezone"]
    found = fates(row, answer.records, answer.situation, answer.start, answer.through)
    remark = answer.moment.remark(zone)
    before, after = around(row, answer.start, answer.through)
    if as_json:
        print_json(
            {
                "schedule": row["name"],
                "from": answer.start,
                "through": answer.through,
                "remark": remark,
                "fire_times": [{**asdict(fate), "local": local(fate.fire_time, zone)} for fate in found],
                "before": before,
                "after": after,
            }
        )
        return
    if remark:
        write(f"{remark}.")
    for fate in found:
        _print(fate, zone)
    if len(found) == MOST:
        say(f"Only the first {MOST} fire times are shown.")
    if not found:
        _print_none(answer, before, after)


def _print(fate: Fate, zone: str) -> None:
    write(f"{instant(fate.fire_time, exact=True)}  {local(fate.fire_time, zone)}")
    if fate.mark:
        write(f"  {fate.mark}")
    write(f"  {fate.sentence}.")


def _print_none(answer: Answer, before: datetime | None, after: datetime | None) -> None:
    row, zone = answer.row, answer.row["timezone"]
    span = instant(answer.start, exact=True)
    if answer.through - answer.start >= answer.moment.width / 2 and answer.moment.whole_day:
        span = f"{span} to {instant(answer.through)}"
    write(f'"{row["name"]}" ({row["expression"]}, {zone}) has no fire time at {span} ({local(answer.start, zone)}).')
    if answer.start < row["created_at"]:
        write(f"The schedule was made at {instant(row['created_at'])}.")
    elif answer.start < row["timed_at"]:
        write(f"It has had its current timing since {instant(row['timed_at'])}; nothing is recorded before that.")
    for word, time in (("before", before), ("after", after)):
        if time is not None:
            write(f"The fire time {word}: {instant(time, exact=True)}, {local(time, zone)}.")
