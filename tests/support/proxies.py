"""What stands between a worker and its server."""

import asyncio
import contextlib

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Proxy:
    """A balancer in front of the server, which can go away for a while. delay: seconds that it takes each way."""

    def __init__(self, dsn, delay=0.0):
        self._given = conninfo_to_dict(dsn)
        self._delay = delay
        self._links = []
        self._open = True

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.dsn = make_conninfo("", **{**self._given, "host": host, "port": port, "sslmode": "disable"})
        return self

    async def __aexit__(self, *_):
        self.cut()
        self._server.close()

    def cut(self):
        """Ends all connections, and refuses others."""
        self._open = False
        for each in self._links:
            each.close()
        self._links.clear()

    def mend(self):
        self._open = True

    async def _accept(self, reader, writer):
        if not self._open:
            writer.close()
            return
        host, port = self._given.get("host") or "localhost", self._given.get("port") or 5432
        if host.startswith("/"):
            there = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            there = await asyncio.open_connection(host, int(port))
        if not self._open:  # cut() came meanwhile, and knew nothing of this one
            writer.close()
            there[1].close()
            return
        self._links += [writer, there[1]]
        with contextlib.suppress(OSError):
            await asyncio.gather(self._pass_on(reader, there[1]), self._pass_on(there[0], writer))

    async def _pass_on(self, reader, writer):
        later = asyncio.get_running_loop().call_later
        while data := await reader.read(65536):
            later(self._delay, writer.write, data)
        later(self._delay, writer.close)
