"""Django's ORM in jobs: `around_sync` lets connections live as they do around a request.

    pip install django
    export PGSCHED_DSN=postgresql://user@host/database
    pgsched migrate
    pgsched run django_app:create_scheduler &          # the worker, in this folder
    python django_app.py                               # stands for some requests

In a real project, manage.py and the settings module take the place of the first part.
"""

import contextlib
import os
from collections.abc import Iterator

import django
from django.conf import settings
from django.db import close_old_connections, connection, models, transaction
from psycopg.conninfo import conninfo_to_dict

from pgsched import Run, Scheduler, connect_sync

# --- the project ------------------------------------------------------------------------------------------

_DSN = os.environ.get("PGSCHED_DSN", "")
_PARTS = conninfo_to_dict(_DSN)
settings.configure(
    USE_TZ=True,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            **{name.upper(): _PARTS.get(name, "") for name in ("user", "password", "host", "port")},
            "NAME": _PARTS.get("dbname", ""),
            "CONN_MAX_AGE": 600,  # one connection for many jobs …
            "CONN_HEALTH_CHECKS": True,  # … if it still works: no job fails because of a restart before it
        }
    },
)
django.setup()


class Order(models.Model):
    """A model of the application shop."""

    email = models.TextField()
    invoiced = models.BooleanField(default=False)

    class Meta:
        """The application that the model belongs to."""

        app_label = "shop"


# --- the worker -------------------------------------------------------------------------------------------


def create_scheduler() -> Scheduler:
    """The factory."""
    sc = Scheduler()

    @sc.around_sync
    @contextlib.contextmanager
    def fresh_connections(run: Run) -> Iterator[None]:
        """What Django does at the start and at the end of a request: closes connections that are broken or too old."""
        close_old_connections()
        try:
            yield
        finally:
            close_old_connections()

    @sc.entrypoint("invoice")
    def invoice(order: int) -> str:
        with transaction.atomic():
            found = Order.objects.select_for_update().get(pk=order)
            found.invoiced = True
            found.save()
        return f"invoiced {found.email}"

    return sc


# --- the application --------------------------------------------------------------------------------------


def main() -> None:
    """A view: the order and its job are committed together, or neither is."""
    with connection.schema_editor() as editor:
        if Order._meta.db_table not in connection.introspection.table_names():
            editor.create_model(Order)
    with connect_sync(_DSN) as client:
        with transaction.atomic():
            order = Order.objects.create(email="ada@example.org")
            run = client.enqueue("invoice", {"order": order.pk}, connection=connection.connection)
        print(client.runs.wait(run, timeout=20)["result"])
        order.refresh_from_db()
        print(order.invoiced)


if __name__ == "__main__":
    main()
