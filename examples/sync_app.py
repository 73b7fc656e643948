"""A synchronous application, as with Django or Flask: `connect_sync()`, and jobs in the application's transaction.

    export PGSCHED_DSN=postgresql://user@host/database
    pgsched migrate
    pgsched run sync_app:create_scheduler &            # the worker, in this folder
    python sync_app.py                                 # stands for some requests

In Django the caller's connection is `django.db.connection.connection`, inside `transaction.atomic()`.
"""

import os
from datetime import UTC, datetime, timedelta

import psycopg

from pgsched import Run, Scheduler, connect_sync

# --- the worker -------------------------------------------------------------------------------------------


def create_scheduler() -> Scheduler:
    """The factory: schedules and entrypoints for queued jobs, in one scheduler. plain.sql uses the entrypoints too."""
    sc = Scheduler()

    @sc.schedule("report", "0 9 * * mon-fri", name="morning-report", timezone="Europe/Berlin", args={"format": "pdf"})
    def report(run: Run, format: str) -> str:  # a plain function runs in a thread
        return f"a {format} of {run.fire_time:%Y-%m-%d}"

    @sc.entrypoint("invoice")
    def invoice(order: int, email: str) -> str:
        return f"invoice {order} to {email}"

    @sc.entrypoint("remind")
    def remind(order: int) -> str:
        return f"reminder of {order}"

    return sc


# --- the application --------------------------------------------------------------------------------------


def main() -> None:
    """Some requests."""
    dsn = os.environ.get("PGSCHED_DSN", "")
    # One client for the whole process, which threads share. Make it after a server such as gunicorn has forked.
    with connect_sync(dsn) as client, psycopg.connect(dsn) as connection:
        # Together or not at all: calls with connection= take effect when its transaction commits.
        with connection.transaction():
            connection.execute(
                "create table if not exists bookings (id bigint generated always as identity, email text not null)"
            )
            cursor = connection.execute("insert into bookings (email) values ('bob@example.org') returning id, email")
            [(order, email)] = cursor.fetchall()
            invoice = client.enqueue("invoice", {"order": order, "email": email}, priority=10, connection=connection)
            tomorrow = datetime.now(UTC) + timedelta(days=1)
            client.enqueue("remind", {"order": order}, due_at=tomorrow, connection=connection)
        connection.commit()
        print(client.runs.wait(invoice, timeout=20)["result"])

        # Many at once. A job with the key of a live one is not queued again.
        orders = [{"order": n, "email": "all@example.org"} for n in (1, 2, 2)]
        ids = client.enqueue_many("invoice", orders, unique_keys=[f"again {job['order']}" for job in orders])
        print([client.runs.wait(run, timeout=20)["status"] for run in dict.fromkeys(ids)])

        client.pause("morning-report", "until the audit is over")
        print(client.runs.wait(client.trigger("morning-report"), timeout=20)["result"])
        client.resume("morning-report")


if __name__ == "__main__":
    main()
