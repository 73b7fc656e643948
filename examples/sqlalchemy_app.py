"""SQLAlchemy's sessions in jobs: `around_sync` gives each run a session of its own, as a web framework does.

    pip install sqlalchemy
    export PGSCHED_DSN=postgresql://user@host/database
    pgsched migrate
    pgsched run sqlalchemy_app:create_scheduler &      # the worker, in this folder
    python sqlalchemy_app.py                           # stands for some requests

In a real project, the models and the requests are in modules of their own.
"""

import contextlib
import os
from collections.abc import Iterator

import psycopg
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, scoped_session, sessionmaker

from pgsched import Run, Scheduler, connect_sync

# --- the application --------------------------------------------------------------------------------------

_DSN = os.environ.get("PGSCHED_DSN", "")
# A connection from the pool is tried before it is used: no job fails because of a restart before it.
engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(_DSN), pool_pre_ping=True)
session = scoped_session(sessionmaker(engine))  # a session for each thread


class Base(DeclarativeBase):
    """The base of all models."""


class Parcel(Base):
    """A model."""

    __tablename__ = "parcels"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    sent: Mapped[bool] = mapped_column(default=False)


# --- the worker -------------------------------------------------------------------------------------------


def create_scheduler() -> Scheduler:
    """The factory."""
    sc = Scheduler()

    @sc.around_sync
    @contextlib.contextmanager
    def session_for_run(run: Run) -> Iterator[None]:
        """Commits if the function returns, rolls back if it raises. A broken session never reaches the next run."""
        try:
            with session.begin():
                yield
        finally:
            session.remove()

    @sc.entrypoint("send")
    def send(parcel: int) -> str:
        found = session.get_one(Parcel, parcel)
        found.sent = True
        return f"sent to {found.email}"

    return sc


# --- some requests ----------------------------------------------------------------------------------------


def main() -> None:
    """A request: the parcel and its job are committed together, or neither is."""
    Base.metadata.create_all(engine)
    with connect_sync(_DSN) as client:
        with session.begin():
            parcel = Parcel(email="bob@example.org")
            session.add(parcel)
            session.flush()  # it gets its id
            driver = session.connection().connection.driver_connection
            run = client.enqueue("send", {"parcel": parcel.id}, connection=driver)
        print(client.runs.wait(run, timeout=20)["result"])
        print(session.get_one(Parcel, parcel.id).sent)


if __name__ == "__main__":
    main()
