"""`pgsched run APP`: finds the factory, calls it, and runs its scheduler until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import inspect
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Coroutine
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from pgsched import config, log
from pgsched.cli.options import Setting, setting_flags
from pgsched.config import Settings
from pgsched.errors import ConfigurationError, PgschedError
from pgsched.executors.home import home_of_factory
from pgsched.expression.duration import format_duration
from pgsched.scheduler import Scheduler
from pgsched.worker.serve import serve
from pgsched.worker.worker import GIVEN_BACK


def _default(setting: Setting) -> str:
    value: Any = setting.default
    return "" if value is None else f"[{value if isinstance(value, (str, int)) else format_duration(value)}]"


@click.command()
@click.argument("app")
@click.option("--migrate", "migrate_first", is_flag=True, help="Bring the schema to this version first.")
@setting_flags(*(setting.name for setting in fields(Settings)), note=_default)
def run(app: str, flags: dict[str, str | None], file: str | None, migrate_first: bool) -> None:
    """Run the scheduler that the factory APP builds, until SIGTERM, SIGHUP or Ctrl-C.

    APP is the factory's import path, module.function or module:function; the current directory is importable.
    The factory is a function, an async function or an async context manager, and returns a Scheduler.

    Exit codes: 0 drained; 75 drained, but runs had to be given back; 69 no database; 78 wrong configuration;
    128 plus the signal's number after a second signal.
    """
    early = config.load(flags, file=file)
    log.begin(early.log_level, early.log_format)
    # A thousand runs at once are many objects, and none of them is garbage: with the usual threshold of 700 the
    # collector would run all the time. Cycles that a run leaves behind are still collected, a little later.
    gc.set_threshold(100_000)
    given_back = _complete(_run(app, flags, file, migrate_first))
    if given_back:
        # A thread that does not stop would keep the interpreter from exiting.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(GIVEN_BACK)


def _complete(work: Coroutine[Any, Any, int]) -> int:
    """Runs the daemon to its end, no matter which exceptions its jobs raise.

    asyncio lets a SystemExit or KeyboardInterrupt in any task out of the loop. If a job's own task raised it, the
    loop goes on. A real Ctrl-C arrives as KeyboardInterrupt only until the worker handles the signal.
    """
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop if sys.platform == "win32" else None) as runner:
        loop = runner.get_loop()
        task = loop.create_task(work)
        while True:
            try:
                return loop.run_until_complete(task)
            except (SystemExit, KeyboardInterrupt) as error:
                real = isinstance(error, KeyboardInterrupt) and (
                    signal.getsignal(signal.SIGINT) is signal.default_int_handler
                )
                if real or task.done():
                    raise


async def _run(app: str, flags: dict[str, str | None], file: str | None, migrate_first: bool) -> int:
    async with built(app) as scheduler:
        settings = config.load(flags, scheduler.settings, file=file)
        log.configure(settings.log_level, settings.log_format)
        return await serve(
            scheduler, flags, file=file, migrate_first=migrate_first, hard_exit=os._exit, owns_process=True
        )


@contextlib.asynccontextmanager
async def built(app: str) -> AsyncIterator[Scheduler]:
    """The scheduler that the factory at an import path builds. Raises ConfigurationError with one sentence."""
    factory = find(app)
    async with contextlib.AsyncExitStack() as stack:
        with _in_one_sentence(f"The factory {app}"):
            product: Any = factory if isinstance(factory, Scheduler) else _call(app, factory)
            if inspect.isawaitable(product):
                product = await product
            if hasattr(product, "__aenter__"):
                product = await stack.enter_async_context(product)
            elif not isinstance(product, Scheduler) and hasattr(product, "__enter__"):
                product = stack.enter_context(product)
        if not isinstance(product, Scheduler):
            raise ConfigurationError(
                f"The factory {app} returned {_kind(product)}, not a Scheduler: return the Scheduler that it builds."
            )
        product.come_from(home_of_factory(app, sys.modules[_module_of(app)]))
        yield product


def _call(app: str, factory: Any) -> Any:
    if not callable(factory):
        raise ConfigurationError(f"{app} is {_kind(factory)}, not a factory: name a function that returns a Scheduler.")
    try:
        inspect.signature(factory).bind()
    except TypeError:
        raise ConfigurationError(
            f"The factory {app} needs arguments, but pgsched calls it without any: give them defaults."
        ) from None
    except ValueError:  # it has no signature to read: call it and see
        pass
    return factory()


def _kind(value: Any) -> str:
    return "nothing (None)" if value is None else f"a value of type {type(value).__name__}"


def find(app: str) -> Any:
    """The object at an import path. Raises ConfigurationError with one sentence."""
    module_name = _module_of(app)
    attribute = app[len(module_name) + 1 :]
    parts = [*module_name.split("."), *attribute.split(".")]
    if not module_name or not all(part.isidentifier() for part in parts):
        raise ConfigurationError(
            f"{app!r} is not the import path of a factory: write module.function or module:function."
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    with _in_one_sentence(f"Importing {module_name}"):
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not (module_name + ".").startswith(error.name + "."):
                raise
            raise ConfigurationError(
                f"There is no module {error.name!r}, neither installed nor in {here}: check the path {app!r} "
                "and the current directory."
            ) from None
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise ConfigurationError(f"The module {module_name!r} has no {attribute!r}: check the path {app!r}.")
        found = getattr(found, name)
    return found


def _module_of(app: str) -> str:
    """The module in an import path, module:name or module.name."""
    return app.partition(":")[0] if ":" in app else app.rpartition(".")[0]


@contextlib.contextmanager
def _in_one_sentence(subject: str) -> Any:
    """Turns any exception of the user's code into one sentence that names its place."""
    try:
        yield
    except ConfigurationError as error:
        if subject.startswith("Importing") or type(error) is ConfigurationError:
            raise
        raise ConfigurationError(f"{subject} failed: {error}{_place(error)}") from None
    except (Exception, SystemExit) as error:
        kind = "" if isinstance(error, PgschedError) else f"{type(error).__name__}: "
        text = " ".join(str(error).split())
        raise ConfigurationError(f"{subject} failed: {kind}{text}{_place(error)}") from None


def _place(error: BaseException) -> str:
    """The innermost place outside of pgsched and the import machinery, in brackets."""
    if isinstance(error, SyntaxError):
        return ""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if (
            not frame.filename.startswith(("<", str(Path(__file__).parent.parent)))
            and frame.filename != importlib.__file__
        ):
            return f" ({frame.filename}:{frame.lineno})"
    return ""
