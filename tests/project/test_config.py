"""Settings: one name everywhere, one order of sources, all problems at once."""

from dataclasses import fields
from datetime import timedelta

import pytest

from pgsched.config import Settings, load
from pgsched.errors import ConfigurationError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_flag_over_environment_over_file_over_code_over_default(folder):
    def running(**sources):
        (folder / "pgsched.toml").write_text(sources.pop("file", ""))
        return load(sources.get("flags"), sources.get("code"), sources.get("environment", {})).max_running

    assert running() == 1000
    code, file = {"max_running": 1}, "max_running = 2"
    environment, flags = {"PGSCHED_MAX_RUNNING": "3"}, {"max_running": "4"}
    assert running(code=code) == 1
    assert running(code=code, file=file) == 2
    assert running(code=code, file=file, environment=environment) == 3
    assert running(code=code, file=file, environment=environment, flags=flags) == 4


def test_every_setting_has_a_name_in_the_environment():
    values = {
        "dsn": "host=x", "listen_dsn": "host=y", "schema": "s", "data_dir": "d", "health_file": "h",
        "max_running": "7", "max_threads": "7", "max_processes": "7", "max_commands": "7",
        "max_transactions": "7", "log_level": "DEBUG", "log_format": "json",
        "heartbeat_interval": "2", "stall_timeout": "8s",
    }  # fmt: skip
    settings = load(environment={f"PGSCHED_{f.name.upper()}": values.get(f.name, "2m") for f in fields(Settings)
                                 if f.name != "lookahead"})  # fmt: skip
    assert settings.log_level == "debug" and settings.heartbeat_interval == timedelta(seconds=2)
    assert settings.retention == timedelta(minutes=2) and settings.max_threads == 7


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("5m", 300), ("0.25", 0.25), (2, 2), (1.5, 1.5)]
)
def test_durations(text, seconds):
    assert load({"drain_timeout": text}, environment={}).drain_timeout == timedelta(seconds=seconds)


def test_all_problems_come_at_once(folder):
    (folder / "pgsched.toml").write_text('stal_timeout = "1s"\nmax_running = "many"')
    with pytest.raises(ConfigurationError) as caught:
        load({"log_format": "xml"}, environment={"PGSCHED_LOOKAHEAD": "1h"})
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "pgsched.toml: there is no setting 'stal_timeout'" in lines[0]
    assert "pgsched.toml: max_running must be a whole number" in lines[1]
    assert "environment: lookahead must be between 0 and 10s, not '1h'" in lines[2]
    assert "command line: log_format must be one of" in lines[3]


def test_a_password_is_not_repeated():
    with pytest.raises(ConfigurationError) as caught:
        load({"dsn": "postgresql://u:canary@h/d\0"}, environment={})
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("max_running = ", "is not TOML"), (None, "there is no such file"), ("\xff", "is not TOML")],
)
def test_a_file_that_was_named_must_be_readable(folder, content, sentence):
    if content is not None:
        (folder / "own.toml").write_text(content, encoding="latin-1")
    with pytest.raises(ConfigurationError, match=sentence):
        load(environment={}, file="own.toml")


def test_beats_must_be_much_quicker_than_the_stall_timeout():
    with pytest.raises(ConfigurationError, match="at most a quarter of stall_timeout"):
        load({"heartbeat_interval": "10s"}, environment={})
