"""`pgsched trigger`: a shorter name for `pgsched schedules trigger`."""

from pgsched.cli.schedules import trigger

__all__ = ["trigger"]
