"""Parts that several statements write alike, since SQL has no way to share them and each is tuned by itself."""

import re

import pytest

from pgsched.db.statements.queries import Queries

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
