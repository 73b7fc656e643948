"""Processes of runs, here of commands: what is kept of their output, and that nothing of them goes on when their run is
over."""

import asyncio
import os
import signal
import sys
import time
from datetime import timedelta

import pytest
from support.commands import Attempt, children_states
from support.workers import alive, until, working

from pgsched import Command, CommandFailed, Retry, Scheduler, connect
from pgsched.executors.warden import ORPHANS
from pgsched.journal import Journal

# Only a notification can bring a request, and nobody takes the claim away.
FAR = {"heartbeat_interval": "30s", "stall_timeout": "1h"}
ONCE = Retry(attempts=1)


@pytest.fixture
async def client(settings):
    async with connect(settings.dsn, schema=settings.schema) as client:
        yield client


def numbers(path) -> list[int]:
    """The process ids in a file, as soon as there are any."""
    return [int(word) for word in path.read_text().split()] if path.exists() else []


async def test_lines_are_kept_as_they_come_with_their_stream_as_level(tmp_path):
    gate = tmp_path / "gate"
    attempt = Attempt(
        Command(f"printf 'one\\ntw'; echo oops >&2; until test -e {gate}; do sleep 0.01; done", shell=True)
    )
    task = asyncio.create_task(attempt.execute())
    seen: list[tuple[str, str]] = []

    def more() -> bool:
        seen.extend(attempt.lines())
        return len(seen) >= 2

    await until(more)
    assert sorted(seen) == [("info", "one"), ("warning", "oops")]  # while it runs
    gate.touch()
    await task
    assert attempt.lines() == [("info", "tw")]


async def test_output_without_end_is_capped_and_counted():
    attempt = Attempt(Command("yes some line or other | head -n 200000; echo last", shell=True))
    result = await attempt.execute()
    assert result["output"].endswith("\nlast\n") and len(result["output"]) == 8192
    kept = attempt.lines()
    assert sum(len(text) + 1 for _, text in kept) <= Journal.LIMIT
    assert len(kept) + attempt.journal.dropped in (200_000, 200_001)  # a line that is cut by the limit counts once


async def test_bytes_that_are_no_text_are_shown_and_can_be_stored():
    attempt = Attempt(["printf", r"a\377\000b\n"])
    assert (await attempt.execute())["output"] == "a\\xff\\x00b\n"


async def test_long_lines_are_cut_between_characters():
    """Where they are cut must not depend on how the bytes came, and no letter is lost."""
    for text in ("ä" * 10_000, "x" + "日" * 9_000 + "\n"):
        attempt = Attempt([sys.executable, "-c", f"print({text!r}, end='', flush=True)"])
        result = await attempt.execute()
        lines = [line for _, line in attempt.lines()]
        assert "".join(lines) == text.rstrip() and len(lines) > 1
        assert max(len(line.encode()) for line in lines) <= 8192
        assert set(result["output"]) <= set(text)


FAMILY = """
sleep 1000 & echo $$ $! > {folder}/pids.new && mv {folder}/pids.new {folder}/pids
wait
"""


@pytest.mark.parametrize("why", ["cancel", "timeout", "lost", "drain"])
async def test_whatever_stops_its_run_ends_the_command_and_its_children(settings, db, client, tmp_path, why):
    sc = Scheduler()
    sc.command(
        "family", FAMILY.format(folder=tmp_path), shell=True, retry=ONCE,
        timeout=timedelta(seconds=1.5) if why == "timeout" else None,
    )  # fmt: skip
    changes = {} if why == "lost" else FAR
    async with working(sc, settings, **changes, cancel_timeout="20s", drain_timeout="100ms") as worker:
        run_id = await client.enqueue("family")
        await until(lambda: numbers(tmp_path / "pids"))
        pids = numbers(tmp_path / "pids")
        if why == "cancel":
            await client.cancel(run_id)
        elif why == "lost":
            await db.all("update pgsched.runs set worker = gen_random_uuid(), heartbeat_at = now() + interval '1 hour'")
        elif why == "drain":
            worker.stop()
        await until(lambda: worker.roster.slots_used == 0)
        assert not any(alive(pid) for pid in pids)  # at once: SIGTERM was enough
    expected = {"cancel": "cancelled", "timeout": "failed", "lost": "running", "drain": "queued"}
    assert await db.value("select status from pgsched.runs") == expected[why]


async def test_a_command_that_ignores_sigterm_is_killed_and_not_told_as_disobedient(settings, db, client, tmp_path):
    sc = Scheduler()
    stubborn = f"trap '' TERM; {FAMILY.format(folder=tmp_path)} while :; do sleep 1; done"
    sc.command("stubborn", stubborn, shell=True)
    async with working(sc, settings, **FAR, cancel_timeout="1500ms"):
        run_id = await client.enqueue("stubborn")
        await until(lambda: numbers(tmp_path / "pids"))
        await client.cancel(run_id)
        await db.until("select status = 'cancelled' from pgsched.runs")
        assert not any(alive(pid) for pid in numbers(tmp_path / "pids"))
    assert (await client.get_run(run_id))["reason"] == "cancelled on request"


async def test_all_of_the_group_is_asked(tmp_path):
    script = f"""
    trap : TERM
    sh -c 'trap "touch {tmp_path}/asked; exit" TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done' &
    while kill -0 $! 2> {tmp_path}/errors; do wait $!; done
    """
    task = asyncio.create_task(Attempt(Command(script, shell=True)).execute())
    await until((tmp_path / "ready").exists)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled() and (tmp_path / "asked").exists()


@pytest.fixture(params=["pidfd", "thread"])
def watched(request, monkeypatch):
    """Both ways in which the end of a process is noticed."""
    if request.param == "thread":

        def refused(pid: int, flags: int = 0) -> int:
            raise OSError("Too many open files")

        monkeypatch.setattr(os, "pidfd_open", refused)


@pytest.mark.usefixtures("watched")
async def test_who_is_asked_has_the_time_whoever_of_the_group_ends_first(tmp_path):
    """The shell of a crontab's line goes down at once; the program in it may have something to put in order."""
    script = f"""
    sh -c 'trap "sleep 0.2; touch {tmp_path}/tidy; exit" TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done' &
    echo $$ $! > {tmp_path}/pids
    wait
    """
    task = asyncio.create_task(Attempt(Command(script, shell=True)).execute())
    await until((tmp_path / "ready").exists)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled() and (tmp_path / "tidy").exists()
    assert not any(alive(pid) for pid in numbers(tmp_path / "pids")) and not ORPHANS.groups


async def test_who_is_cancelled_at_once_may_still_say_something(tmp_path):
    """The cancellation comes while its output is being connected."""
    script = f"""
    trap "echo sorry; echo sorry >&2; touch {tmp_path}/tidy; exit" TERM; touch {tmp_path}/ready
    while :; do sleep 0.05; done
    """
    attempt = Attempt(Command(script, shell=True))
    task = asyncio.create_task(attempt.execute())
    await asyncio.sleep(0)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled() and (tmp_path / "tidy").exists()
    assert attempt.lines()[-2:] in (
        [("info", "sorry"), ("warning", "sorry")],
        [("warning", "sorry"), ("info", "sorry")],
    )


@pytest.mark.usefixtures("watched")
async def test_who_does_not_take_it_is_killed_though_the_first_has_gone(tmp_path):
    deaf = f"sh -c 'trap \"\" TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done'"
    script = f"{deaf} & echo $! > {tmp_path}/pids; wait"
    task = asyncio.create_task(Attempt(Command(script, shell=True), grace=0.1).execute())
    await until((tmp_path / "ready").exists)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: not any(alive(pid) for pid in numbers(tmp_path / "pids")))
    assert task.cancelled() and not ORPHANS.groups


@pytest.mark.usefixtures("watched")
async def test_an_exit_code_that_others_took_is_no_success(tmp_path):
    """As of `os.wait()` in a job's thread: subprocess would say 0."""
    script = f"echo $$ > {tmp_path}/pids; until test -e {tmp_path}/gate; do sleep 0.02; done; exit 3"
    task = asyncio.create_task(Attempt(Command(script, shell=True)).execute())
    await until(lambda: numbers(tmp_path / "pids"))
    (tmp_path / "gate").touch()
    os.waitpid(numbers(tmp_path / "pids")[0], 0)  # noqa: ASYNC222 - the event loop shall have no say meanwhile
    with pytest.raises(CommandFailed, match="unknown exit code: other code in the worker waits for child") as told:
        await task
    assert told.value.exit_code_of_command is None


async def test_exit_codes_are_known_where_they_were_to_be_ignored():
    """Some parents of services start them so, and every exit code is lost."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(CommandFailed, match="exited with code 3"):
            await Attempt(["sh", "-c", "exit 3"]).execute()
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("watched")
async def test_what_a_command_leaves_behind_ends_with_it_even_if_it_holds_the_output(tmp_path):
    attempt = Attempt(Command(f"sleep 1000 & echo $! > {tmp_path}/pids; echo done", shell=True))
    assert (await attempt.execute())["output"] == "done\n"
    await until(lambda: not any(alive(pid) for pid in numbers(tmp_path / "pids")))
    said = ("warning", "the command left processes in the background, which were killed when it ended")
    assert attempt.lines() == [("info", "done"), said]
    tidy = Attempt(Command("sleep 0 & wait; echo done | cat", shell=True))
    await tidy.execute()
    assert tidy.lines() == [("info", "done")]


async def test_neither_descriptors_nor_zombies_nor_threads_remain(tmp_path):
    await Attempt(["true"]).execute()  # what stays for good is there now
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    for command in (["true"], ["false"], ["no-such-program"], Command("cat", shell=True, stdin="x")):
        await asyncio.gather(Attempt(command).execute(), return_exceptions=True)
    stopped = asyncio.create_task(Attempt(["sleep", "1000"]).execute())
    await asyncio.sleep(0)
    stopped.cancel()
    await asyncio.gather(stopped, return_exceptions=True)
    assert stopped.cancelled()
    await asyncio.sleep(0)  # transports close in the next turn of the loop
    assert not ORPHANS.groups
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208
    assert "Z" not in children_states()
