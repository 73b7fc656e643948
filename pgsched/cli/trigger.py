"""`pgsched trigger`: `pgsched schedules trigger`, by the name under which one looks for it first."""

from pgsched.cli.schedules import trigger

__all__ = ["trigger"]
