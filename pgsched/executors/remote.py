"""The messages of a run whose function is called elsewhere, there and back. All of them are JSON.

process and dask carry them. Nothing is pickled: the function is found by its name.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import runpy
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from pgsched.db.fence.fence import Fence
from pgsched.errors import Discard, InvalidArguments, RegistrationError, RetryLater
from pgsched.executors.executor import Function, Signature, is_async
from pgsched.journal import Journal
from pgsched.model import Cancellation, Claim, Run, RunError, Schedule
from pgsched.rules.outcome import RemoteError, Unstored, encode, leaves, only, storable

Answer = dict[str, Any]
_MAIN = "__pgsched_main__"  # the module name of the program's file in a process with another main program


class RemoteCancellation(Cancellation):
    """The request to stop, on the function's side. Any thread may call ask()."""

    def __init__(self, grace: float) -> None:
        super().__init__(grace)
        self.interrupt: Callable[[], object] = lambda: None  # cancels a coroutine

    def ask(self) -> None:
        """Somebody wants the run to stop."""
        self.requested = True
        self.interrupt()


class RemoteJournal(Journal):
    """A journal that sends its lines and progress to the worker that claimed the run. send: sends a message."""

    PAUSE = 0.1  # seconds between two messages about progress

    def __init__(self, send: Callable[[dict[str, Any]], object]) -> None:
        self._send = send
        self._sent_at = float("-inf")
        self._progress: tuple[float, float | None] | None = None
        super().__init__()

    def add(self, text: str, level: str) -> None:
        """Sends it, as long as there is room."""
        with self._lock:
            room = self.LIMIT - self._size
            self._size += len(text) + 1
            if room <= 0:
                self.dropped += max(1, len(text.splitlines()))
        if room > 0:
            self._send({"log": text[:room], "level": level})

    @property
    def progress(self) -> tuple[float, float | None] | None:
        """The progress that was reported last."""
        return self._progress

    @progress.setter
    def progress(self, value: tuple[float, float | None] | None) -> None:
        self._progress = value
        if value is not None and time.monotonic() - self._sent_at >= self.PAUSE:
            self._sent_at = time.monotonic()
            self._send({"progress": value})

    def finish(self) -> None:
        """Sends the last progress and the number of dropped lines."""
        if self._progress is not None:
            self._send({"progress": self._progress})
        if self.dropped:
            self._send({"dropped": self.dropped})


# --- there ----------------------------------------------------------------------------------------------


def target_of(function: Function) -> dict[str, str]:
    """The place where another process finds a function. Raises RegistrationError if it cannot."""
    name = getattr(function, "__qualname__", repr(function))
    advice = "another process can only import a function from the top level of a module: define it there."
    if not inspect.isfunction(function):
        raise RegistrationError(f"{name} is not a plain function, and {advice}")
    if "<" in name:
        inside = name.split(".<locals>")[-2] if ".<locals>" in name else ""
        kind = "a lambda" if name.endswith("<lambda>") else f"defined inside {inside}()"
        raise RegistrationError(f"{function.__name__} is {kind}, and {advice}")
    if function.__module__ != "__main__":
        return {"module": function.__module__, "name": name}
    main = sys.modules["__main__"]
    if main.__spec__ is not None:
        return {"module": main.__spec__.name, "name": name}
    if not (file := getattr(main, "__file__", None)):
        raise RegistrationError(f"{name} was typed into an interactive session, and {advice}")
    return {"file": file, "name": name}


def pack(run: Run, function: Function, *, fenced: bool = False) -> str:
    """A run and its function as JSON, in one line.

    fenced: with the DSN of the worker's database, including a password in it, for run.transaction() there.
    """
    names = ("id", "entrypoint", "fire_time", "previous_fire_time", "attempt", "token")
    fields = {name: getattr(run, name) for name in names}
    package = {
        "target": target_of(function),
        "run": fields | {"worker": str(run.worker)},
        "args": json.dumps(run.args),  # as a text: our object_hook must not read it
        "grace": run.cancellation.grace,
        "schedule": None if run.schedule is None else asdict(run.schedule),
        "fence": None,
    }
    if fenced and isinstance(fence := run.fence, Fence):
        package["fence"] = {"dsn": fence.dsn, "schema": fence.schema, "started_at": fence.started_at}
    return json.dumps(package, default=_written)


def _written(value: Any) -> Any:
    if isinstance(value, datetime):
        return {"datetime": value.isoformat()}
    assert isinstance(value, timedelta)
    return {"timedelta": [value.days, value.seconds, value.microseconds]}


def _read(found: dict[str, Any]) -> Any:
    if found.keys() == {"datetime"}:
        return datetime.fromisoformat(found["datetime"])
    if found.keys() == {"timedelta"}:
        return timedelta(*found["timedelta"])
    return found


class Package:
    """A packed run, on the function's side.

    cancellation: takes the request to stop.
    committed: called once the run's own transaction has certainly committed.
    """

    def __init__(self, text: str | bytes, journal: Journal, committed: Callable[[], None] = lambda: None) -> None:
        found = json.loads(text, object_hook=_read)
        self._target: Mapping[str, str] = found["target"]
        self.cancellation = RemoteCancellation(found["grace"])
        fields = found["run"] | {"worker": uuid.UUID(found["run"]["worker"])}
        claim = Claim(fields["id"], fields["token"], fields["worker"])
        self.run = Run(
            **fields,
            schedule=None if found["schedule"] is None else Schedule(**found["schedule"]),
            args=json.loads(found["args"]),
            resources=None,
            cancellation=self.cancellation,
            journal=journal,
            fence=Fence(claim=claim, committed=committed, **found["fence"]) if found["fence"] is not None else None,
        )

    def call(self) -> Answer:
        """Finds the function, calls it and returns the answer, also for every exception."""
        try:
            function = find(self._target)
            arguments = Signature.of(function).bind(self.run)
            if is_async(function):
                return asyncio.run(self._awaited(function, arguments))
            return _answer(function(**arguments))
        except BaseException as error:
            return _failure(error)

    async def _awaited(self, function: Function, arguments: Mapping[str, Any]) -> Answer:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self.cancellation.interrupt = lambda: loop.call_soon_threadsafe(task.cancel)
        if self.cancellation.requested:
            task.cancel()
        try:
            return _answer(await function(**arguments))
        except BaseException as error:  # here, so that asyncio's frames are not in the traceback
            if isinstance(error, asyncio.CancelledError) and self.cancellation.requested:
                self.cancellation.noticed = True
            return _failure(error)
        finally:
            self.cancellation.interrupt = lambda: None


def find(target: Mapping[str, str]) -> Function:
    """The function of a target. Raises its module's exceptions, and AttributeError if the function is missing."""
    if "file" in target:
        found: Any = sys.modules.get(_MAIN)
        if found is None:
            found = type(sys)(_MAIN)
            found.__dict__.update(runpy.run_path(target["file"], run_name=_MAIN))
            sys.modules[_MAIN] = found
    else:
        found = importlib.import_module(target["module"])
    for name in target["name"].split("."):
        found = getattr(found, name)
    function: Function = found
    return function


def _answer(result: Any) -> Answer:
    text, reason = encode(result)
    return {"result": text, "reason": reason}


def _failure(error: BaseException) -> Answer:
    if later := only(error, RetryLater):
        longest = max(later, key=lambda each: each.delay)
        counts = any(each.counts for each in later)
        return {"later": longest.delay.total_seconds(), "reason": str(longest), "counts": counts}
    if discarded := only(error, Discard):
        return {"discard": str(discarded[0])}
    described = storable(error)
    if isinstance(error, InvalidArguments):
        return {"invalid": described.message}
    real = [leaf for leaf in leaves(error) if not isinstance(leaf, RetryLater | Discard)]
    kinds = [[(kind.__module__, kind.__qualname__) for kind in type(leaf).__mro__] for leaf in real]
    return {"error": asdict(described), "kinds": kinds}


# --- and back -------------------------------------------------------------------------------------------


def hear(run: Run, message: Mapping[str, Any]) -> None:
    """Keeps a RemoteJournal's message with the run, or passes on that the run's transaction has committed."""
    if "log" in message:
        run.log(message["log"], message["level"])
    elif "progress" in message:
        run.progress(*message["progress"])
    elif "dropped" in message:
        run.journal.drop(message["dropped"])
    elif "committed" in message and isinstance(run.fence, Fence):
        run.fence.committed()


def received(answer: Answer) -> Any:
    """The function's result, or Unstored. Raises the function's error: pgsched's own errors as they are, others as a
    RemoteError."""
    if "later" in answer:
        raise RetryLater(answer["later"], answer["reason"], counts=answer["counts"])
    if "discard" in answer:
        raise Discard(answer["discard"])
    if "invalid" in answer:
        raise InvalidArguments(answer["invalid"])
    if "error" in answer:
        raise RemoteError(RunError(**answer["error"]), [_known(names) for names in answer["kinds"]])
    if answer["reason"] is not None:
        return Unstored(answer["reason"])
    return None if answer["result"] is None else json.loads(answer["result"])


def _known(names: list[list[str]]) -> type[BaseException]:
    """The first of these classes that has been imported here; an answer never imports anything."""
    for module, name in names:
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        if isinstance(found, type) and issubclass(found, BaseException):
            return found
    return Exception
