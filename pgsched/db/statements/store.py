"""All statements of a worker, in classes by the parts that use them."""

from __future__ import annotations

from pgsched.db.statements.claims import ClaimStatements
from pgsched.db.statements.declarations import DeclarationStatements
from pgsched.db.statements.runs import RunStatements
from pgsched.db.statements.trials import TrialStatements
from pgsched.db.statements.upkeep import UpkeepStatements


class Store(ClaimStatements, TrialStatements, RunStatements, UpkeepStatements, DeclarationStatements):
    """The statements, for one schema. Methods take the connection, so that they can share a transaction.

    app: the application whose worker sends them. Without one, claims see only work that names no application.
    """
