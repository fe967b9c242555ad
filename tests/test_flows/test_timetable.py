"""When a schedule fires: time zones, hours that a zone leaves out or has twice, and the delay of each run."""

from datetime import UTC, datetime, timedelta

import pytest

from dass.errors import InputError
from flows.timetable import Timetable


def due(zone: str, after: str, cron: str = "30 2 * * *") -> str:
    return Timetable.read(cron, zone).due_after(datetime.fromisoformat(after)).isoformat()


def test_a_schedule_is_read_in_its_zone_summer_and_winter() -> None:
    assert due("UTC", "2026-11-26T02:29:59+00:00") == "2026-11-26T02:30:00+00:00"
    assert due("UTC", "2026-11-26T02:30:00+00:00") == "2026-11-27T02:30:00+00:00"  # the one that has just fired is over
    assert due("Europe/Berlin", "2026-11-25T12:00:00+00:00") == "2026-11-26T02:30:00+01:00"
    assert due("Europe/Berlin", "2026-07-01T12:00:00+00:00") == "2026-07-02T02:30:00+02:00"
    assert due("Asia/Kolkata", "2026-11-26T00:00:00+00:00", "0 9 * * *") == "2026-11-26T09:00:00+05:30"


def test_the_nights_on_which_clocks_are_changed_have_one_run_each() -> None:
    spring = Timetable.read("0 3 * * *", "Europe/Berlin")
    first = spring.due_after(datetime(2026, 3, 28, 12, tzinfo=UTC))
    assert first.astimezone(UTC).isoformat() == "2026-03-29T01:00:00+00:00"  # 03:00 is an hour earlier than yesterday
    assert spring.due_after(first).astimezone(UTC).isoformat() == "2026-03-30T01:00:00+00:00"
    autumn = Timetable.read("30 2 * * *", "Europe/Berlin")
    once = autumn.due_after(datetime(2026, 10, 24, 12, tzinfo=UTC))
    assert once.date().isoformat() == "2026-10-25"  # half past two comes twice
    assert autumn.due_after(once).date().isoformat() == "2026-10-26"


@pytest.mark.parametrize(
    ("zone", "meant"),
    [
        ("Europe/Berln", "Did you mean Europe/Berlin?"),
        ("", "an IANA name"),
        ("+02:00", "an IANA name"),
        ("../x", "IANA"),
    ],
)
def test_what_is_no_time_zone_is_refused(zone: str, meant: str) -> None:
    with pytest.raises(InputError, match=r"is no time zone: expected an IANA name") as refused:
        Timetable.read("0 2 * * *", zone)
    assert meant in str(refused.value)


def test_a_run_is_delayed_by_its_own_share_of_the_jitter_whenever_it_is_asked() -> None:
    spread = Timetable.read("0 2 * * *", "UTC", 600)
    nights = [datetime(2026, 11, 1, 2, tzinfo=UTC) + timedelta(days=day) for day in range(200)]
    delays = [spread.delay("/models/a", night) for night in nights]
    assert delays == [spread.delay("/models/a", night.astimezone(UTC)) for night in nights]
    assert delays != [spread.delay("/models/b", night) for night in nights]
    assert 0 <= min(delays) < 60
    assert 540 < max(delays) <= 600
    assert spread.start_after("/models/a", nights[0] - timedelta(hours=1)) == nights[0] + timedelta(seconds=delays[0])
    assert Timetable.read("0 2 * * *").delay("/models/a", nights[0]) == 0


@pytest.mark.parametrize(("cron", "jitter"), [("0 2 * * *", -1), ("*/5 * * * *", 300), ("0 1,2 * * *", 3600)])
def test_a_jitter_that_reaches_the_next_run_is_refused(cron: str, jitter: int) -> None:
    with pytest.raises(InputError, match=r"--jitter is -?\d+"):
        Timetable.read(cron, "UTC", jitter)


@pytest.mark.parametrize(
    "cron",
    [
        *("", "0 2 * *", "61 * * * *", "every night", "* * * * * */10", "@reboot", "@daily", "*/0 * * * *"),
        *("0 2 * * 8", "0 24 * * *", "0 0 0 * *", "TZ=UTC 0 2 * * *", "CRON_TZ=Europe/Berlin 0 2 * * *", "R * * * *"),
    ],
)
def test_what_is_no_schedule_of_five_fields_is_refused(cron: str) -> None:
    with pytest.raises(InputError, match=r"is not a schedule: expected minute hour day month weekday"):
        Timetable.read(cron)


@pytest.mark.parametrize("cron", ["0 0 31 2 *", "0 0 30 2 *", "0 2 31 4,6 *"])
def test_a_schedule_that_never_fires_is_refused(cron: str) -> None:
    with pytest.raises(InputError, match="never fires"):
        Timetable.read(cron)


@pytest.mark.parametrize("cron", ["0 0 29 2 *", "0 2 * * 7", "0 2 * * mon-fri", "*/15 8-18 * * 1-5"])
def test_a_schedule_that_fires_is_taken(cron: str) -> None:
    Timetable.read(cron)
