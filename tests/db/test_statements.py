"""Parts that several statements write alike, since SQL has no way to share them and each is tuned by itself. And the
columns that a method takes by place."""

import re
import uuid
from dataclasses import fields
from datetime import timedelta

import pytest
from psycopg import AsyncRawCursor

from pgsched.db.statements import queries
from pgsched.db.statements.queries import Queries
from pgsched.db.statements.store import Store
from pgsched.db.statements.values import Due, EntrypointDefaults, Share, Withheld
from pgsched.model import ClaimedRun
from pgsched.rules.fairness import Candidate

CLAIMS = ("claim_due_runs", "claim_runs")
UPDATE = re.compile(
    r"update pgsched\.runs r set status = 'running', (?P<set>.*?)"
    r" from (?P<chosen>\w+), (?P<defaults>unnest\(.*?\) as e \(.*?\))"
    r" where r\.id = (?P=chosen)\.id and e\.entrypoint = r\.entrypoint(?P<where>.*?)"
    r" returning (?P<returning>.*?)(?: \)|$)",
)
# The statement that finds queued jobs itself claims them at once, so it must leave out those whose entrypoint has
# limits by now. The other one is sent the ids of runs that a statement before has chosen with the same look.
UNLIMITED = " and not exists ( select from pgsched.limit_members m"


def texts() -> dict[str, str]:
    """The queries as one line each, without comments."""
    bare = {name: re.sub(r"--.*", "", text.decode()) for name, text in Queries.texts().items()}
    return {name: " ".join(text.split()) for name, text in bare.items()}


def assignments(text: str) -> dict[str, str]:
    """Column by column: a comma within brackets is a part of the expression."""
    parts = re.split(r", (?=\w+ = )(?![^(]*\))", text)
    return dict(part.split(" = ", 1) for part in parts)


def test_a_claim_is_written_in_two_statements():
    """And tried, in a transaction that is rolled back, in a third: the server must see the same change."""
    found = {name: text.count("set status = 'running'") for name, text in texts().items()}
    assert {name: count for name, count in found.items() if count} == {**dict.fromkeys(CLAIMS, 1), "try_claim": 1}
    tried = re.search(r"set (.*?) where", texts()["try_claim"])
    claimed = UPDATE.search(texts()["claim_runs"])
    assert tried and claimed
    real = {"status": "'running'", **assignments(claimed["set"])}
    assert assignments(tried[1]).items() <= real.items()


@pytest.mark.parametrize("part", ["set", "defaults", "returning"])
def test_both_write_a_claim_in_the_same_words(part):
    due, given = (UPDATE.search(texts()[name]) for name in CLAIMS)
    assert due and given, "the claim is no longer written as this test reads it"
    assert due[part] == given[part]


def test_only_the_one_that_chooses_looks_for_limits():
    due, given = (UPDATE.search(texts()[name]) for name in CLAIMS)
    assert due and given
    assert due["where"].startswith(UNLIMITED)
    assert given["where"] == ""
    assert "from held h where not exists ( select from pgsched.limit_members m" in texts()["lock_gated_runs"]


def test_the_parts_are_all_that_a_claim_is_made_of():
    """A part that this file forgot could differ unseen."""
    found = UPDATE.search(texts()["claim_runs"])
    assert found
    columns = assignments(found["set"])
    assert list(columns) == [
        "attempt", "token", "schedule_version", "worker", "claimed_at", "heartbeat_at", "started_at",
        "cancel_requested_at", "max_attempts", "backoff", "max_backoff", "timeout",
    ]  # fmt: skip
    assert found["returning"].split(", ")[:2] == ["r.id", "r.schedule_id"]


@pytest.mark.parametrize("part", ["back", "opened", "unremoved"])
def test_a_claim_gives_its_fire_time_back_in_two_statements(part):
    """Its worker gives it back, or the reaper takes it away: its schedule must come by that fire time again alike."""
    found = [
        re.search(rf"\b{part} as \( (.*?) \)(?:,| select)", texts()[name]) for name in ("give_back_runs", "reap_runs")
    ]
    assert found[0] and found[1] and found[0][1] == found[1][1]


# --- candidates, and the locks that check them again -----------------------------------------------------

FULL = re.compile(
    r"\( (\(select count\(\*\) from pgsched\.executing (?:(?!overlap_limit).)*) \) >= pgsched\.overlap_limit\("
)


def part(name: str, pattern: str) -> str:
    """What the pattern's one group finds, which the statement must have exactly once."""
    [found] = re.findall(pattern, texts()[name])
    return found


@pytest.mark.parametrize(
    "pattern",
    [
        r"where (s\.status = 'active' and s\.priority = t\.priority .*?) and \( s\.next_run (?:is null|<= now)",
        r"and (not \( s\.catch_up = 'all' .*? >= pgsched\.overlap_limit\(s\.overlap\) \))",
        r"and (\( select count\(\*\) from pgsched\.runs r where (?:(?! from ).)* and pgsched\.withdrawn\(.*?\) \) = 0)",
        r"( order by coalesce\(s\.next_run, '-infinity'::timestamptz\), s\.id limit g\.room)",
    ],
    ids=["mine", "waits for its own runs", "withdrawn", "order"],
)
def test_a_fire_time_is_a_candidate_by_the_conditions_under_which_its_schedule_is_locked(pattern):
    assert part("read_candidates", pattern) == part("lock_due_schedules", pattern)


def test_the_live_runs_of_a_schedule_are_counted_in_the_same_words():
    """Whether it is full, twice for the lock and once for a candidate, and how much room it has."""
    full = FULL.findall(texts()["lock_due_schedules"]) + FULL.findall(texts()["read_candidates"])
    assert len(full) == 3 and len(set(full)) == 1
    room = part("read_candidates", r"pgsched\.overlap_limit\(f\.overlap\) - (.*?) end as room")
    assert room.replace("f.id", "s.id").replace("::int", "").split(" - ") == full[0].split(" + ")


def test_a_waiting_run_is_a_candidate_by_the_conditions_under_which_it_is_locked():
    pattern = r"where (r\.status = 'queued' and r\.gated and r\.line is null .*?) limit greatest\("
    locked = part("lock_gated_runs", pattern)
    assert part("read_candidates", pattern) == locked.replace("g.id", "s.id").replace("g.status", "s.status")
    counted = (
        r"pgsched\.overlap_limit\(s\.overlap\) - (\(select count\(\*\) from pgsched\.executing .*?\))(?:::int)? as"
    )
    assert part("read_candidates", counted) == part("lock_gated_runs", counted)


# --- columns by place ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["claim_due_runs", "read_candidates"])
async def test_the_columns_that_are_taken_by_place_are_the_fields(settings, db, monkeypatch, name):
    columns = []

    class Noting(AsyncRawCursor):
        async def execute(self, *args, **options):
            await super().execute(*args, **options)
            columns.extend(column.name for column in self.description)

    monkeypatch.setattr(queries, "AsyncRawCursor", Noting)
    claims, shares, soon = Store(settings.schema).claims, [Share(["job"], 1)], timedelta(0)
    if name == "claim_due_runs":
        rules = [EntrypointDefaults("job", 1, soon, soon, None)]
        await claims.claim_due_runs(db.connection, uuid.uuid4(), rules, shares, lookahead=soon, limit=1)
        meant = [*names(Due), *names(ClaimedRun, without="schedule")]
    else:
        due = Due(False, 1, 1, False, 1)
        await claims.read_candidates(db.connection, shares, lookahead=soon, limit=1, due=due, leave=Withheld())
        meant = [*names(Candidate, without="needs"), "room"]
    assert columns == meant


def names(of: type, without: str = "") -> list[str]:
    return [field.name for field in fields(of) if field.name != without]
