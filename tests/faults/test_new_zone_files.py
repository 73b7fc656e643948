"""New time zone files under a daemon that starts again."""

import importlib.resources


async def test_a_daemon_with_other_zone_files_sees_it(daemons, db, monkeypatch, tmp_path):
    """Paris goes over to the clock of Tokyo."""
    daemons.app("@sc.schedule('job', '0 9 1 1 *', name='s', timezone='Europe/Paris')\nasync def job(): ...\n")
    daemon = await daemons.ready()
    await db.until("select next_run is not null from pgsched.schedules")
    assert await daemon.stop() == 0
    assert await db.value("select extract(hour from next_run at time zone 'UTC')::int from pgsched.schedules") == 8
    folder = tmp_path / "zones" / "Europe"
    folder.mkdir(parents=True)
    tokyo = importlib.resources.files("tzdata").joinpath("zoneinfo", "Asia", "Tokyo").read_bytes()
    (folder / "Paris").write_bytes(tokyo)
    monkeypatch.setenv("PYTHONTZPATH", str(tmp_path / "zones"))
    daemon = await daemons.ready()
    assert (await daemon.event("time_zone_changed"))["zone"] == "Europe/Paris"
    await db.until("select extract(hour from next_run at time zone 'UTC') = 0 from pgsched.schedules")
    assert await daemon.stop() == 0
