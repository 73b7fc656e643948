"""The systemd unit: what it says, whether its parts fit each other and the settings, and how exposed it is."""

import json
import pathlib
import re
import shutil
import subprocess
from datetime import timedelta

import pytest

from pgsched.config import Settings
from pgsched.errors import ConfigurationError, InvalidExpression

UNIT = pathlib.Path(__file__).parents[2] / "systemd" / "pgsched.service"
MOST_EXPOSED = 1.5
analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")


def read() -> dict[str, dict[str, list[str]]]:
    """Section -> key -> all its values, in order."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in UNIT.read_text().splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return sections


@pytest.fixture(scope="module")
def service() -> dict[str, list[str]]:
    return read()["Service"]


def only(service: dict[str, list[str]], key: str) -> str:
    (value,) = service[key]
    return value


def seconds(service: dict[str, list[str]], key: str) -> timedelta:
    return timedelta(seconds=int(only(service, key)))


def environment(service: dict[str, list[str]]) -> dict[str, str]:
    return dict(pair.split("=", 1) for line in service["Environment"] for pair in line.split())


def test_starts_pgsched_and_hears_from_it(service: dict[str, list[str]]) -> None:
    assert only(service, "Type") == "notify"
    assert only(service, "NotifyAccess") == "main"
    assert only(service, "ExecStart") == "/usr/bin/env pgsched run $PGSCHED_APP"
    assert environment(service)["PATH"].split(":")[0] == "/opt/pgsched/bin"
    assert only(service, "EnvironmentFile").startswith("-/etc/"), "without the file it still says what is missing"
    assert read()["Install"]["WantedBy"] == ["multi-user.target"]


def test_a_stop_gives_the_drain_its_time(service: dict[str, list[str]]) -> None:
    settings = Settings()
    # Twice: for the runs to end, and for a database that is away to take their outcomes.
    longest = 2 * (settings.drain_timeout + settings.cancel_timeout)
    assert seconds(service, "TimeoutStopSec") >= longest + timedelta(seconds=15)
    assert only(service, "KillMode") == "mixed", "else the programs of the jobs get the signal too"
    assert only(service, "KillSignal") == "SIGTERM"
    assert only(service, "SuccessExitStatus") == "75"


def test_a_start_may_take_as_long_as_the_embedded_server(service: dict[str, list[str]]) -> None:
    from pgsched.db import embedded

    assert seconds(service, "TimeoutStartSec") > timedelta(seconds=embedded.START_TIMEOUT)


def test_the_watchdog_comes_after_the_patience_with_a_blocked_loop(service: dict[str, list[str]]) -> None:
    """Else it ends every run of a process whose claims are being kept."""
    settings = Settings()
    assert seconds(service, "WatchdogSec") >= settings.block_limit + timedelta(seconds=30)
    assert seconds(service, "WatchdogSec") > 2 * settings.stall_timeout


def test_is_started_again_unless_that_cannot_help(service: dict[str, list[str]]) -> None:
    assert only(service, "Restart") == "always"
    assert seconds(service, "RestartSec") >= timedelta(seconds=1)
    prevented = set(map(int, only(service, "RestartPreventExitStatus").split()))
    assert prevented == {InvalidExpression.exit_code, ConfigurationError.exit_code}
    assert read()["Unit"]["StartLimitIntervalSec"] == ["0"], "an outage of the database must not exhaust the tries"


def test_the_settings_it_names_exist_and_lie_where_it_may_write(service: dict[str, list[str]]) -> None:
    named = {key: value for key, value in environment(service).items() if key.startswith("PGSCHED_")}
    for key in named:
        assert hasattr(Settings(), key.removeprefix("PGSCHED_").lower()), key
    assert only(service, "StateDirectory") == only(service, "RuntimeDirectory") == "pgsched"
    assert named["PGSCHED_DATA_DIR"].startswith("%S/pgsched/")
    assert named["PGSCHED_HEALTH_FILE"].startswith("%t/pgsched/")


def test_every_setting_that_stands_in_the_comments_exists() -> None:
    known = {f"PGSCHED_{name.upper()}" for name in Settings.__dataclass_fields__} | {"PGSCHED_APP"}
    assert set(re.findall(r"PGSCHED_[A-Z_]+[A-Z]", UNIT.read_text())) <= known


def test_the_network_and_threads_work(service: dict[str, list[str]]) -> None:
    assert {"AF_UNIX", "AF_INET", "AF_INET6"} <= set(only(service, "RestrictAddressFamilies").split())
    assert "PrivateNetwork" not in service
    assert service["SystemCallFilter"][0] == "@system-service"
    assert only(service, "SystemCallErrorNumber") == "EPERM", "a call that is not allowed is an error, not the end"


def test_the_credential_in_the_comments_works(tmp_path: pathlib.Path) -> None:
    """The line for the shell, as the manager would hand it on."""
    (line,) = re.findall(r"^#   ExecStart=/bin/sh -c '(.+)'$", UNIT.read_text(), re.MULTILINE)
    (tmp_path / "dsn").write_text("postgresql://user:pass%20word@host/db\n")
    program = tmp_path / "pgsched"
    program.write_text('#!/bin/sh\necho "$PGSCHED_DSN" "$@"\n')
    program.chmod(0o755)
    told = subprocess.run(
        ["/bin/sh", "-c", line.replace("$$", "$")],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "CREDENTIALS_DIRECTORY": str(tmp_path), "PGSCHED_APP": "app.factory"},
    )
    assert told.stdout == "postgresql://user:pass%20word@host/db run app.factory\n"
    (tmp_path / "dsn").unlink()
    failed = subprocess.run(
        ["/bin/sh", "-c", line.replace("$$", "$")],
        check=False,
        capture_output=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "CREDENTIALS_DIRECTORY": str(tmp_path)},
    )
    assert failed.returncode != 0, "without the credential it does not go for another database"


@analyze
def test_systemd_finds_no_fault_with_it() -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(UNIT)], check=False, capture_output=True, text=True, timeout=60
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "pgsched" in line]
    assert (done.returncode, ours) == (0, [])


@analyze
def test_is_hardly_exposed() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager"]
    try:
        done = subprocess.run(
            [*command, "--json=short", str(UNIT)], check=False, capture_output=True, text=True, timeout=60
        )
        findings = json.loads(done.stdout)
    except ValueError:
        pytest.skip("this systemd-analyze is too old to judge a file")
    assert len(findings) > 50
    told = subprocess.run([*command, str(UNIT)], check=False, capture_output=True, text=True, timeout=60).stdout
    (score,) = re.findall(r"Overall exposure level for \S+: ([0-9.]+)", told)
    assert float(score) <= MOST_EXPOSED
    # The limit that the tool itself applies, in tenths.
    assert (
        subprocess.run(
            [*command, f"--threshold={MOST_EXPOSED * 10:.0f}", str(UNIT)], check=False, capture_output=True, timeout=60
        ).returncode
        == 0
    )
