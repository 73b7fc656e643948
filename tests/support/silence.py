"""A proxy in front of a server whose connections fall silent: it accepts all that comes, and passes nothing on."""

import asyncio
import contextlib

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Link:
    """A connection through the proxy."""

    def __init__(self):
        self.startup = b""
        self.up, self.down = asyncio.Event(), asyncio.Event()
        self.up.set()
        self.down.set()

    def freeze(self, up=True, down=True):
        for way, frozen in ((self.up, up), (self.down, down)):
            if frozen:
                way.clear()


class Silence:
    """The proxy; `dsn` leads through it."""

    def __init__(self, dsn):
        self._given = conninfo_to_dict(dsn)
        self._tasks, self.links = set(), []
        self._traps = []
        self.all_frozen = False
        self.sprung = asyncio.Event()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        given = {key: value for key, value in self._given.items() if key != "hostaddr"}
        self.dsn = make_conninfo("", **{**given, "host": host, "port": port, "sslmode": "disable"})
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def freeze(self, name=b""):
        """The connections of this application_name, or all, are silent from now on. New ones work."""
        for link in self.links:
            if name in link.startup:
                link.freeze()

    def freeze_all(self):
        """And so are those that are still to come, until thaw()."""
        self.all_frozen = True
        self.freeze()

    def thaw(self):
        self.all_frozen = False
        for link in self.links:
            link.up.set()
            link.down.set()

    def trap(self, text, *, arrives):
        """The connection that sends this text first is silent from then on; `sprung` is set. arrives: whether the
        server still gets the text, so that only its answer is lost."""
        self._traps.append((text, arrives))

    async def _serve(self, reader, writer):
        link = Link()
        self.links.append(link)
        if self.all_frozen:
            link.freeze()
        self._tasks.add(task := asyncio.current_task())
        try:
            await link.up.wait()
            host, port = self._given.get("host") or "localhost", self._given.get("port") or 5432
            if host.startswith("/"):
                answers, server = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            else:
                answers, server = await asyncio.open_connection(host, int(port))
            with contextlib.suppress(OSError, asyncio.CancelledError):  # the end of the proxy
                await asyncio.gather(self._up(link, reader, server), self._down(link, answers, writer))
        finally:
            self._tasks.discard(task)
            self.links.remove(link)
            writer.close()

    async def _up(self, link, reader, server):
        try:
            while data := await reader.read(65536):
                link.startup = link.startup or data
                for text, arrives in [each for each in self._traps if each[0] in data]:
                    self._traps.remove((text, arrives))
                    link.freeze(up=not arrives)
                    self.sprung.set()
                await link.up.wait()
                server.write(data)
        finally:
            server.close()

    async def _down(self, link, answers, writer):
        try:
            while data := await answers.read(65536):
                await link.down.wait()
                writer.write(data)
        finally:
            writer.close()
