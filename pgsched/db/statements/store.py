"""All statements of a worker, by the parts that use them."""

from __future__ import annotations

from pgsched.db.statements.claims import ClaimStatements
from pgsched.db.statements.declarations import DeclarationStatements
from pgsched.db.statements.queries import Rewrite
from pgsched.db.statements.runs import RunStatements
from pgsched.db.statements.trials import TrialStatements
from pgsched.db.statements.upkeep import UpkeepStatements


class Store:
    """Each part takes the statements that it uses. The parameters are those of Queries."""

    def __init__(self, schema: str = "pgsched", app: str = "", rewrite: Rewrite | None = None) -> None:
        self.claims = ClaimStatements(schema, app, rewrite)
        self.trials = TrialStatements(schema, app, rewrite)
        self.runs = RunStatements(schema, app, rewrite)
        self.upkeep = UpkeepStatements(schema, app, rewrite)
        self.declarations = DeclarationStatements(schema, app, rewrite)
