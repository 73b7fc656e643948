"""A TCP proxy between clients and their server that fails on command. links.py holds a single connection of it.

`async with Proxy(dsn) as proxy` runs in the test's own event loop. `with ProxyThread(dsn) as thread` runs in a thread,
for synchronous clients and for tests that block their loop; `thread.do(lambda proxy: proxy.freeze())` commands it.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import select
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from support.links import Link, Way, first_packet, parameters, reset

T = TypeVar("T")


class Door(enum.Enum):
    """How new connections are received."""

    OPEN = "passed on to the server"
    SILENT = "accepted, and frozen"
    DROP = "accepted, and closed"
    RESET = "accepted, and reset"
    REFUSE = "refused"
    HANG = "not even accepted: connect() hangs"


class Proxy:
    """Passes connections on to the server of a DSN. `dsn` leads through it, without TLS.

    delay: how many seconds each byte of a new connection takes, each way.
    links: the connections that are there, the oldest first.
    greet: is called with each new connection once its startup packet is known, before any byte is passed on.
    sprung: is set once a trap() has frozen a connection.
    """

    def __init__(self, dsn: str, delay: float = 0.0) -> None:
        self._target = conninfo_to_dict(dsn)
        self.delay = delay
        self._door = Door.OPEN
        self._tasks: set[asyncio.Task[None]] = set()
        self._fillers = contextlib.ExitStack()
        self.links: list[Link] = []
        self.greet: Callable[[Link], None] = lambda link: None
        self._traps: list[tuple[bytes, Way]] = []
        self.sprung = asyncio.Event()

    async def __aenter__(self) -> Proxy:
        self._listen(0)
        given = {key: value for key, value in self._target.items() if key != "hostaddr"}
        ways = {"host": "127.0.0.1", "port": self._address[1], "sslmode": "disable", "gssencmode": "disable"}
        self.dsn = make_conninfo("", **{**given, **ways})
        return self

    async def __aexit__(self, *_: object) -> None:
        self._close()
        for link in self.links:
            link.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def door(self) -> Door:
        return self._door

    @door.setter
    def door(self, door: Door) -> None:
        """How new connections are received from now on."""
        if self._door in (Door.REFUSE, Door.HANG):
            self._close()
            self._listen(self._address[1])
        self._door = door
        if door is Door.REFUSE:
            self._close()
        elif door is Door.HANG:
            self._accepting.cancel()
            self._fillers.enter_context(_full(self._socket))

    def lead_to(self, dsn: str) -> None:
        """Passes new connections on to another server, as an address that moves with the primary."""
        self._target = conninfo_to_dict(dsn)

    def named(self, name: str) -> list[Link]:
        """The connections that have this application_name."""
        return [link for link in self.links if link.name == name]

    def backend(self, pid: int) -> Link:
        """The connection of this process of the server, which pg_stat_activity has found."""
        return next(link for link in self.links if link.backend == pid)

    def freeze(self, way: Way = Way.BOTH, *, keep: bool = True) -> None:
        """Freezes all connections; new ones are accepted and frozen, too."""
        self.door = Door.SILENT
        for link in self.links:
            link.freeze(way, keep=keep)

    def silence(self, name: str = "") -> None:
        """Freezes the connections whose application_name begins with this; new ones work."""
        for link in self.links:
            if link.name.startswith(name):
                link.freeze()

    def trap(self, text: bytes, *, arrives: bool) -> None:
        """Freezes the first connection that sends this text. arrives: whether the server still gets the text, so that
        only its answer is lost."""
        self._traps.append((text, Way.DOWN if arrives else Way.BOTH))

    def thaw(self, *, old: bool = True) -> None:
        """Lets new connections work again. old: also those that were frozen."""
        self.door = Door.OPEN
        for link in self.links if old else []:
            link.thaw()

    def cut(self, door: Door = Door.DROP) -> None:
        """Ends all connections, and receives new ones like this."""
        self.door = door
        for link in list(self.links):
            link.reset() if door is Door.RESET else link.close()

    def vanish(self) -> None:
        """As a machine without power: connections are silent, and a new one does not even come about."""
        self.freeze(keep=False)
        self.door = Door.HANG

    def mend(self) -> None:
        """Receives new connections again."""
        self.door = Door.OPEN

    def _listen(self, port: int) -> None:
        self._socket = socket.create_server(("127.0.0.1", port))
        self._socket.setblocking(False)
        self._address = self._socket.getsockname()
        self._accepting = self._spawn(self._accept(self._socket))

    def _close(self) -> None:
        self._accepting.cancel()
        self._socket.close()
        self._fillers.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(listening)
            self._spawn(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        link = None
        try:
            packet = None if self._turns_away(writer) else await first_packet(reader, writer)
            if packet is None or self._turns_away(writer):  # the door may have changed meanwhile
                return
            link = Link(writer, parameters(packet), self.delay, self._heard)
            link.up.accept(packet)
            self.links.append(link)
            if self._door is not Door.OPEN:
                link.freeze()
            self.greet(link)
            await link.run(reader, self._connect)
        except (OSError, asyncio.IncompleteReadError):
            pass  # one side has gone
        finally:
            writer.close()
            if link is not None:
                self.links.remove(link)

    def _heard(self, link: Link, data: bytes) -> None:
        for trap in [each for each in self._traps if each[0] in data]:
            self._traps.remove(trap)
            link.freeze(trap[1])
            self.sprung.set()

    def _turns_away(self, writer: asyncio.StreamWriter) -> bool:
        if self._door is Door.RESET:
            reset(writer)
        return self._door in (Door.DROP, Door.RESET)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = str(self._target.get("host") or "localhost"), int(self._target.get("port") or 5432)
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(str(self._target.get("hostaddr") or host), port)


class ProxyThread:
    """A proxy in a thread of its own."""

    def __init__(self, dsn: str, delay: float = 0.0) -> None:
        self._proxy = Proxy(dsn, delay)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> ProxyThread:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._proxy.__aenter__(), self._loop).result(10)
        self.dsn = self._proxy.dsn
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._proxy.__aexit__(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def do(self, act: Callable[[Proxy], T]) -> T:
        """Commands the proxy in its own thread, and returns the answer."""

        async def command() -> T:
            return act(self._proxy)

        return asyncio.run_coroutine_threadsafe(command(), self._loop).result(10)


@contextlib.contextmanager
def black_hole(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Yields a port at which connect() hangs, as at the address of a machine that is gone."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listening, _full(listening):
        yield int(listening.getsockname()[1])


@contextlib.contextmanager
def _full(listening: socket.socket) -> Iterator[None]:
    """Fills the backlog of a socket that nobody accepts from, so that the kernel drops every further SYN."""
    listening.listen(0)
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            filler = stack.enter_context(socket.socket(listening.family))
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
            if not select.select([], [filler], [], 0.2)[1]:
                break
        else:
            raise RuntimeError("This system accepts connections beyond the backlog of a socket.")
        yield
