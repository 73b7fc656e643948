"""Programs that run a scheduler among other things: web servers and plain asyncio programs, as real processes."""

import os
import subprocess
import sys
from pathlib import Path

from daemons import PRELUDE, QUICK, Daemon, Daemons

# Settings as keywords, since a host gives no flags.
_OPENING = f"""{PRELUDE}
import logging
import structlog

def scheduler(app="host", **more):
    settings = {{**{QUICK!r}, **more}}
    sc = Scheduler(os.environ["FAULTS_DSN"], app=app, schema=os.environ["FAULTS_SCHEMA"], **settings)

    @sc.entrypoint(f"{{app}}-async")
    async def waits(run: Run):
        note(run, "began")
        await opened("gate")

    @sc.entrypoint(f"{{app}}-sync")
    def blocks(run: Run):
        note(run, "began")
        while not (FOLDER / "gate").exists():
            time.sleep(0.02)

    return sc

def say(what, **fields):
    print(json.dumps({{"event": what, **fields}}), file=sys.stderr, flush=True)

"""

WEB = """
sc = scheduler()

async def app(scope, receive, send):
    if scope["type"] != "lifespan":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"served"})
        return
    await receive()
    running = asyncio.create_task(sc.run())
    await sc.ready.wait()
    say("lifespan_began", root=len(logging.getLogger().handlers), structlog=structlog.is_configured())
    await send({"type": "lifespan.startup.complete"})
    await receive()
    sc.shutdown()
    given_back = await running
    await send({"type": "lifespan.shutdown.complete"})
    say("lifespan_ended", given_back=given_back)
"""


def host(daemons: Daemons, source: str, *command: str) -> Daemon:
    """Starts a program from its source; or a server, by its command, which finds the source as the module `hosted`."""
    (daemons.folder / "hosted.py").write_text(_OPENING + source)
    log = daemons.folder / f"daemon-{len(daemons.all)}.log"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PGSCHED_")}
    environment = {**kept, "PYTHONPATH": str(daemons.folder), "PYTHONUNBUFFERED": "1", "FAULTS_DSN": daemons.dsn,
                   "FAULTS_SCHEMA": daemons.schema, "FAULTS_FOLDER": str(daemons.folder)}  # fmt: skip
    started = (
        [str(Path(sys.executable).parent / command[0]), *command[1:]] if command else [sys.executable, "hosted.py"]
    )
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            started, cwd=daemons.folder, env=environment, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
            start_new_session=True,
        )  # fmt: skip
    daemons.all.append(Daemon(process, log))
    return daemons.all[-1]
