"""Runs on an existing Dask cluster, for work that outgrows the machine. Needs `pgsched[dask]`.

The claim, its heartbeat and the outcome stay with the worker here; a Dask worker only calls the function. remote has
the messages there and back.
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
_LOOK = 0.1  # seconds between a Dask worker's checks that its task is still wanted
# Messages of runs go through one topic per process: a scheduler never forgets a topic.
_TOPIC = f"pgsched-{uuid.uuid4()}"
Factory = Callable[[], "Client | Awaitable[Client]"]


class DaskFailed(PgschedError):
    """Dask did not bring a run to its end: its scheduler is away, or its workers died with it."""


class DaskExecutor(Executor):
    """Calls the function, `async def` or not, on a worker of a Dask cluster.

    scheduler: its address, such as "tcp://dask:8786", or a function that makes a client for it (a
        distributed.Client(…, asynchronous=True), or a coroutine that returns one).
    connect_timeout: in seconds, for an address. Default 10.
    submit: further arguments of Client.submit(), such as {"resources": {"GPU": 1}, "priority": 10}.

    The function is found by its name: the Dask workers must be able to import its module, and pgsched. Arguments and
    results are JSON. The Run there is complete, except that `resources` is None. run.log() and run.progress() reach
    the run here, if the Dask scheduler passes their events on. The heartbeat goes on here as long as the task is
    pending.

    If the run is cancelled, runs into its timeout, loses its claim or outlasts a drain, its future is cancelled: a task
    that has not begun never begins, and a late result is dropped. A coroutine is cancelled. Dask cannot interrupt a
    thread: a sync function sees run.cancelled about a tenth of a second later, and goes on until it looks. Nobody waits
    for it, so the next attempt may begin meanwhile.

    If a Dask worker dies, or its scheduler cannot reach it, Dask starts its task again within the same attempt, up to
    the scheduler's `allowed-failures` times. After that, or if the scheduler is away, the attempt fails with a
    DaskFailed.
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
        """Raises RegistrationError if a Dask worker cannot find the function."""
        if "file" in target_of(function):
            raise RegistrationError(
                f"{function.__name__} is in the program's own file, which a Dask worker cannot import: "
                "define it in another module."
            )

    async def execute(self, run: Run) -> Any:
        """Calls the function on the cluster. Raises DaskFailed, and the function's own error as RemoteError."""
        assert self.function is not None
        package = pack(run, self.function)
        # Another attempt's task may still be there: no two of them have the same key.
        key = f"pgsched-{run.id}-{run.token}-{uuid.uuid4().hex[:8]}"
        async with _connected(self._scheduler, self._connect_timeout) as (shared, client):
            shared.runs[key] = run
            future = client.submit(perform, package, _TOPIC, key=key, pure=False, **self._submit)
            try:
                answer = await _outcome(future)
            finally:
                del shared.runs[key]
                if not future.done():
                    # If the scheduler is away, nobody can be notified.
                    with contextlib.suppress(Exception):
                        await future.cancel(force=True, reason="pgsched", msg=f"run {run.id} must stop")
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
    except Exception as error:  # the function's own errors come as answers: this one is from the way there
        raise DaskFailed(
            f"a Dask worker could not take the run (it needs pgsched {version('pgsched')} there): {_sentence(error)}"
        ) from None


# --- the connection -------------------------------------------------------------------------------------


class _SharedClient:
    """One connection to a scheduler, shared by all runs that are there at one time."""

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
            place = f" at {scheduler}" if isinstance(scheduler, str) else ""
            raise DaskFailed(f"the Dask scheduler{place} does not answer: {_sentence(error)}") from None
        client.subscribe_topic(_TOPIC, self._heard)
        return client

    def _heard(self, event: tuple[float, Any]) -> None:
        """Called by the client with a run's message. It is kept with the run, unless the run has ended."""
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
        """Closes the connection and ignores all errors."""
        self.opening.cancel()
        await asyncio.wait([self.opening], timeout=_CLOSING)
        if self._opened:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_CLOSING):
                    await self.opening.result().close()


_SHARED: dict[tuple[asyncio.AbstractEventLoop, str | Factory], _SharedClient] = {}


@contextlib.asynccontextmanager
async def _connected(scheduler: str | Factory, timeout: float) -> AsyncIterator[tuple[_SharedClient, Any]]:
    """The shared connection to a scheduler, and its open client; closed after its last user. Raises DaskFailed."""
    place = (asyncio.get_running_loop(), scheduler)
    shared = _SHARED.get(place)
    if shared is None or not shared.usable:
        shared = _SHARED[place] = _SharedClient(scheduler, timeout)
    shared.users += 1
    try:
        yield shared, await asyncio.shield(shared.opening)
    finally:
        shared.users -= 1
        if not shared.users:
            if _SHARED.get(place) is shared:
                del _SHARED[place]
            closing = asyncio.create_task(shared.close())
            while not closing.done():
                with contextlib.suppress(asyncio.CancelledError):  # it has a limit of its own
                    await asyncio.shield(closing)


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


# --- on a Dask worker -----------------------------------------------------------------------------------


def perform(text: str, topic: str) -> Answer:
    """Called by a Dask worker: calls the run's function, and returns the answer."""
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
