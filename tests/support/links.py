"""One connection through a proxy: passed on, frozen, delayed, cut short and ended, each direction by itself."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
from collections.abc import Awaitable, Callable

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
_ENCRYPTION = (80877103, 80877104)  # requests for TLS and for GSSAPI
_PROTOCOL_3 = 3 << 16


class Way(enum.Flag):
    """The directions of a connection."""

    UP = enum.auto()  # from the client to the server
    DOWN = enum.auto()
    BOTH = UP | DOWN


class Stream:
    """One direction of a connection. It accepts bytes at any time, also while it passes nothing on."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self._keep = True
        self._flows = asyncio.Event()
        self._flows.set()
        self._left: int | None = None
        self._after: Callable[[], None] = lambda: None
        self._accepted: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    def freeze(self, keep: bool) -> None:
        self._keep = keep
        self._flows.clear()

    def thaw(self) -> None:
        self._flows.set()

    def truncate(self, size: int, after: Callable[[], None]) -> None:
        self._left, self._after = size, after

    async def flows(self) -> None:
        await self._flows.wait()

    def accept(self, data: bytes) -> None:
        """Takes bytes to pass on; no bytes are the end."""
        self._accepted.put_nowait((asyncio.get_running_loop().time() + self.delay, data))

    async def pass_on(self, writer: asyncio.StreamWriter) -> None:
        """Writes the accepted bytes until the end comes."""
        while True:
            at, data = await self._accepted.get()
            await asyncio.sleep(at - asyncio.get_running_loop().time())
            if data and not self._keep and not self._flows.is_set():
                continue
            await self._flows.wait()  # not even the end passes a frozen stream
            if not data:
                return
            cut = self._left is not None and len(data) >= self._left
            writer.write(data[: self._left] if cut else data)
            await writer.drain()
            if cut:
                self._left, after = None, self._after
                after()
            elif self._left is not None:
                self._left -= len(data)


class Link:
    """One connection through a proxy.

    startup: the parameters of its startup packet; empty for a request to cancel.
    backend: the process id of its session in the server; None until the server has reported it.
    heard: is called with bytes of the client before they are passed on.
    """

    def __init__(
        self,
        client: asyncio.StreamWriter,
        startup: dict[str, str],
        delay: float,
        heard: Callable[[Link, bytes], None] = lambda link, data: None,
    ) -> None:
        self.startup = startup
        self._heard = heard
        self.backend: int | None = None
        self.up, self.down = Stream(delay), Stream(delay)
        self._client = client
        self._server: asyncio.StreamWriter | None = None
        self._greeting = b""
        self._ended = asyncio.Event()

    @property
    def name(self) -> str:
        """The application_name that the client gave."""
        return self.startup.get("application_name", "")

    def freeze(self, way: Way = Way.BOTH, *, keep: bool = True) -> None:
        """Accepts bytes and passes none on. keep: whether thaw() passes on those that came meanwhile."""
        for stream in self._streams(way):
            stream.freeze(keep)

    def thaw(self, way: Way = Way.BOTH) -> None:
        for stream in self._streams(way):
            stream.thaw()

    def slow(self, delay: float, way: Way = Way.BOTH) -> None:
        """Delays each byte by so many seconds."""
        for stream in self._streams(way):
            stream.delay = delay

    def truncate(self, size: int, way: Way = Way.DOWN, *, hang: bool = False) -> None:
        """Passes on `size` more bytes (at least 1) and then closes the connection, or freezes it and keeps nothing."""
        for stream in self._streams(way):
            stream.truncate(size, (lambda: self.freeze(keep=False)) if hang else self.close)

    def close(self) -> None:
        """Ends it, as each side does in good order."""
        self._ended.set()

    def reset(self) -> None:
        """Ends it with an RST, as a machine that has forgotten it."""
        for writer in filter(None, (self._client, self._server)):
            reset(writer)
        self._ended.set()

    async def run(self, reader: asyncio.StreamReader, connect: Connect) -> None:
        """Passes bytes on until it is ended, here or by one of its sides."""
        tasks = [asyncio.create_task(self._ended.wait()), asyncio.create_task(self._pass_on(reader, connect))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for writer in filter(None, (self._client, self._server)):
                writer.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, connect: Connect) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(_read(reader, self._asked))
            await self.up.flows()  # a frozen connection does not reach the server at all
            answers, self._server = await connect()
            group.create_task(_read(answers, self._answered))
            group.create_task(self._carry(self.up, self._server))
            group.create_task(self._carry(self.down, self._client))

    async def _carry(self, stream: Stream, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await stream.pass_on(writer)
        self._ended.set()

    def _streams(self, way: Way) -> list[Stream]:
        return [stream for each, stream in ((Way.UP, self.up), (Way.DOWN, self.down)) if each in way]

    def _asked(self, data: bytes) -> None:
        self._heard(self, data)
        self.up.accept(data)

    def _answered(self, data: bytes) -> None:
        self.down.accept(data)
        if self.backend is None:
            self._greeting += data
            self.backend = _backend(self._greeting)


async def _read(reader: asyncio.StreamReader, accept: Callable[[bytes], None]) -> None:
    with contextlib.suppress(OSError):  # a reset ends a stream, too
        while data := await reader.read(65536):
            accept(data)
    accept(b"")


async def first_packet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """A startup packet, or a request to cancel. We decline encryption, which would hide all else from us."""
    while True:
        size = await reader.readexactly(4)
        packet = size + await reader.readexactly(struct.unpack("!i", size)[0] - 4)
        if struct.unpack("!i", packet[4:8])[0] not in _ENCRYPTION:
            return packet
        writer.write(b"N")


def parameters(packet: bytes) -> dict[str, str]:
    if struct.unpack("!i", packet[4:8])[0] & ~0xFFFF != _PROTOCOL_3:
        return {}
    texts = packet[8:].decode(errors="replace").split("\0")
    return dict(zip(texts[0::2], texts[1::2], strict=False))


def _backend(greeting: bytes) -> int | None:
    """The process id in a server's first messages: each has a type, its size, and its content."""
    at = 0
    while len(greeting) >= at + 9:
        size = struct.unpack_from("!i", greeting, at + 1)[0]
        if greeting[at : at + 1] == b"K":
            return int(struct.unpack_from("!i", greeting, at + 5)[0])
        at += 1 + size
    return None


def reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):  # it is closed
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
