"""The clock that stands: it takes the place of every other one in the SQL."""

import re

from pgsched.db.migrate import migrations
from pgsched.db.statements.queries import Queries
from pgsched.testing.clock import rewritten


def test_no_statement_knows_another_clock():
    """Whatever is added to the SQL must go by a word that the moved clock takes the place of."""
    other = re.compile(
        rb"(?i)\b(current_timestamp|current_date|current_time|localtime|localtimestamp|transaction_timestamp"
        rb"|statement_timestamp|timeofday)\b|'(now|today|tomorrow|yesterday)'|\b(now|clock_timestamp)\s*\(\s*\)"
    )
    texts = {**Queries.texts(), **{f"{m.version:04}": m.text for m in migrations()}}
    for name, text in texts.items():
        left = re.sub(rb"pg_catalog\.clock_timestamp\(\)", b"", rewritten(text))
        assert (name, other.search(re.sub(rb"--.*", b"", left))) == (name, None)
