"""Applications that may have another name now, and whose their schedules are."""

from pgsched import Scheduler
from pgsched.executors.home import Home

HERE = Home("shop", "core.app.create_scheduler")


def declares(*names: str, app: str | None = None, home: Home = HERE, expression: str = "@yearly", limits=None):
    sc = Scheduler(app=app)
    sc.come_from(home)
    sc.entrypoint("job", limits=limits)(nothing)
    for name in names:
        sc.schedule("job", expression, name=name)(nothing)
    return sc


async def nothing() -> None: ...


async def stored(db) -> dict[str, tuple]:
    rows = await db.all("select name, owner, app, status from pgsched.schedules")
    return {name: rest for name, *rest in rows}


def active(app: str) -> list[str]:
    return [f"code:{app}", app, "active"]


def retired(app: str) -> list[str]:
    return [f"code:{app}", app, "finished"]
