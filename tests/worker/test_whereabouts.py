"""What a worker can see of another worker's process, on Linux."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from pgsched.model import Process
from pgsched.worker import whereabouts
from pgsched.worker.whereabouts import Whereabouts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")


def test_a_process_is_alive_until_it_has_ended_and_another_one_is_not_taken_for_it():
    own = Whereabouts.own()
    assert own.machine and own.pid == os.getpid()
    assert own.state_of(own.machine, own.pid, own.started) is Process.ALIVE
    assert own.state_of(own.machine, own.pid, "1") is Process.ENDED, "another process has its pid"
    with subprocess.Popen(["sleep", "60"]) as child:
        started = whereabouts._stat(child.pid)[1]
        assert own.state_of(own.machine, child.pid, started) is Process.ALIVE
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert own.state_of(own.machine, child.pid, started) is Process.ENDED, "a zombie"
    assert own.state_of(own.machine, child.pid, started) is Process.ENDED


@pytest.mark.parametrize("machine", ["", "another"])
def test_of_another_machine_nothing_is_known(machine):
    own = Whereabouts.own()
    assert own.state_of(machine, own.pid, "1") is Process.UNKNOWN
    assert replace(own, machine="").state_of("", own.pid, "1") is Process.UNKNOWN


def test_a_hidden_process_is_not_an_ended_one(monkeypatch):
    """As with /proc mounted with hidepid."""
    own = Whereabouts.own()
    monkeypatch.setattr(whereabouts, "_stat", lambda pid: None)
    assert own.state_of(own.machine, own.pid, own.started) is Process.UNKNOWN
