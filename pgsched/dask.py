"""Runs that are handed to an existing Dask cluster, where work outgrows the machine. Needs `pgsched[dask]`.

The claim, its heartbeat and the outcome stay with the worker here; what a Dask worker does is call the function. What
is sent there and told from there is remote's.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import CancelledError
from importlib.metadata import version
from typing import Any

from pgsched.errors import ConfigurationError, PgschedError, RegistrationError
from pgsched.executors.executor import Executor, Function, Place
from pgsched.executors.remote import Answer, Package, RemoteJournal, hear, pack, received, target_of
from pgsched.model import Run

try:
    from distributed import Client, KilledWorker, get_worker
except ImportError:
    raise ConfigurationError("pgsched.dask needs dask.distributed: pip install 'pgsched[dask]'.") from None

_CLOSING = 5.0  # seconds that a connection to a scheduler has to close
_LOOK = 0.1  # seconds between a Dask worker's looks whether its task is still wanted
# What runs say goes through one topic a process: a scheduler never forgets a topic.
_TOPIC = f"pgsched-{uuid.uuid4()}"
Factory = Callable[[], "Client | Awaitable[Client]"]


class DaskFailed(PgschedError):
    """Dask did not bring a run to its end: its scheduler is away, or its workers died with it."""


class DaskExecutor(Executor):
    """Has the function, `async def` or not, called by a worker of a Dask cluster.

    scheduler: its address, such as "tcp://dask:8786", or a function that makes a client of it (a
    distributed.Client(…, asynchronous=True), or a coroutine that returns one). connect_timeout: in seconds, for an
    address. submit: what Client.submit() is given besides, such as {"resources": {"GPU": 1}, "priority": 10}.

    The function goes by its name: the Dask workers must be able to import its module, and pgsched. Arguments and
    results are JSON. The Run there is complete but for `resources`, which is None; run.log() and run.progress() reach
    the run here, as far as the Dask scheduler passes events on. The heartbeat goes on here as long as it is pending.

    Where the run is cancelled, runs into its timeout, loses its claim or outlasts a drain, its future is cancelled:
    a task that has not begun never does, and a result that comes later is dropped. Dask cannot interrupt a thread:
    a sync function that runs sees run.cancelled, about a tenth of a second later, and goes on until it looks; nobody
    waits for it, so the next attempt may begin meanwhile. A coroutine is cancelled.

    A Dask worker that dies, or that its scheduler cannot reach any more, has its task begun anew by Dask, within the
    same attempt, as often as its scheduler's `allowed-failures` says; after that, and where the scheduler is away, the
    attempt fails with a DaskFailed.
    """

    def __init__(
        self,
        scheduler: str | Factory,
        *,
        connect_timeout: float = 10.0,
        submit: Mapping[str, Any] | None = None,
        function: Function | None = None,
    ) -> None:
        super().__init__(function)
        if not isinstance(scheduler, str) and not callable(scheduler):
            raise RegistrationError(f"DaskExecutor takes a scheduler's address or a function, not {scheduler!r}.")
        self._scheduler = scheduler
        self._connect_timeout = connect_timeout
        self._submit = dict(submit or {})

    @property
    def place(self) -> Place | None:
        """None: the cluster has the threads."""
        return None

    def check(self, function: Function) -> None:
        """Raises RegistrationError where a Dask worker cannot find the function."""
        if "file" in target_of(function):
            raise RegistrationError(
                f"{function.__name__} is in the program's own file, which a Dask worker cannot import: "
                "define it in a module of its own."
            )

    async def execute(self, run: Run) -> Any:
        """Has the function called. Raises DaskFailed, and what the function raises as RemoteError."""
        assert self.function is not None
        package = pack(run, self.function)
        # Another attempt's task may still be there: no two of them have the same key.
        key = f"pgsched-{run.id}-{run.token}-{uuid.uuid4().hex[:8]}"
        async with _linked(self._scheduler, self._connect_timeout) as (link, client):
            link.runs[key] = run
            future = client.submit(perform, package, _TOPIC, key=key, pure=False, **self._submit)
            try:
                answer = await _outcome(future)
            finally:
                del link.runs[key]
                if not future.done():
                    # Where the scheduler is away, there is nobody to tell.
                    with contextlib.suppress(Exception):
                        await future.cancel(force=True, reason="pgsched", msg=f"run {run.id} shall stop")
                future.release()
        return received(answer)


async def _outcome(future: Any) -> Answer:
    try:
        answer: Answer = await future
        return answer
    except KilledWorker as error:
        last = getattr(error.last_worker, "address", error.last_worker)
        raise DaskFailed(f"Dask gave the run up: its workers died with it, the last one at {last}.") from None
    except CancelledError as error:  # the library's, not a cancellation of ours
        raise DaskFailed(f"Dask gave the run up: {_sentence(error)}") from None
    except Exception as error:  # the function's own come as answers: this is the way there
        raise DaskFailed(
            f"a Dask worker could not take the run, which needs pgsched {version('pgsched')} there: {_sentence(error)}"
        ) from None


# --- the connection -------------------------------------------------------------------------------------


class _Link:
    """One connection to a scheduler, for all runs that go there at one time."""

    def __init__(self, scheduler: str | Factory, timeout: float) -> None:
        self.users = 0
        self.runs: dict[str, Run] = {}
        self.opening = asyncio.create_task(self._open(scheduler, timeout))

    async def _open(self, scheduler: str | Factory, timeout: float) -> Any:
        try:
            if isinstance(scheduler, str):
                client: Any = await Client(
                    scheduler, asynchronous=True, set_as_default=False, timeout=timeout, name="pgsched"
                )
            else:
                client = scheduler()
                client = await client if inspect.isawaitable(client) else client
        except Exception as error:
            where = f" at {scheduler}" if isinstance(scheduler, str) else ""
            raise DaskFailed(f"the Dask scheduler{where} does not answer: {_sentence(error)}") from None
        client.subscribe_topic(_TOPIC, self._heard)
        return client

    def _heard(self, event: tuple[float, Any]) -> None:
        """The client's: something that a run said. It is kept with the run, unless that has ended."""
        message = event[1]
        if (run := self.runs.get(message["key"])) is not None:
            hear(run, message)

    @property
    def usable(self) -> bool:
        """Whether it is being opened, or open."""
        if not self.opening.done():
            return True
        return bool(self._opened and self.opening.result().status == "running")

    @property
    def _opened(self) -> bool:
        return self.opening.done() and not self.opening.cancelled() and self.opening.exception() is None

    async def close(self) -> None:
        """Closes the connection; whatever goes wrong with that is of no interest."""
        self.opening.cancel()
        await asyncio.wait([self.opening], timeout=_CLOSING)
        if self._opened:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_CLOSING):
                    await self.opening.result().close()


_LINKS: dict[tuple[asyncio.AbstractEventLoop, str | Factory], _Link] = {}


@contextlib.asynccontextmanager
async def _linked(scheduler: str | Factory, timeout: float) -> AsyncIterator[tuple[_Link, Any]]:
    """A link to a scheduler and its client, closed when nobody uses it any more. Raises DaskFailed."""
    place = (asyncio.get_running_loop(), scheduler)
    link = _LINKS.get(place)
    if link is None or not link.usable:
        link = _LINKS[place] = _Link(scheduler, timeout)
    link.users += 1
    try:
        yield link, await asyncio.shield(link.opening)
    finally:
        link.users -= 1
        if not link.users:
            if _LINKS.get(place) is link:
                del _LINKS[place]
            closing = asyncio.create_task(link.close())
            while not closing.done():
                with contextlib.suppress(asyncio.CancelledError):  # it has a limit of its own
                    await asyncio.shield(closing)


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


# --- on a Dask worker -----------------------------------------------------------------------------------


def perform(text: str, topic: str) -> Answer:
    """What a Dask worker calls: calls the run's function, and tells how that ended."""
    worker = get_worker()
    key = str(worker.get_current_task())
    journal = RemoteJournal(lambda message: worker.log_event(topic, {"key": key, **message}))
    package = Package(text, journal)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK):
            task = worker.state.tasks.get(key)
            if task is None or task.state in ("cancelled", "released"):
                package.cancellation.ask()
                return

    threading.Thread(target=watch, name=f"watch-{key}", daemon=True).start()
    try:
        return package.call()
    finally:
        over.set()
        journal.finish()
