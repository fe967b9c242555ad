"""A line when a scheduled run starts, and one when it ends."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Completed, Crashed, Running

from flows.cli.serving import _tell_of_schedule
from flows.watch import Watch

NOW: Any = datetime.now(UTC)  # Prefect has a type of its own


def flow_run(name: str, state: "State[Any]", ended: datetime | None = None, tags: tuple[str, ...] = ()) -> FlowRun:
    return FlowRun(
        id=uuid4(), flow_id=uuid4(), name=name, state=state, tags=list(tags), expected_start_time=NOW,
        start_time=NOW, end_time=ended, total_run_time=timedelta(seconds=41.25),
    )  # fmt: skip


def test_each_run_is_told_once_when_it_starts_and_once_when_it_ends() -> None:
    later = NOW + timedelta(hours=1)
    runs = [flow_run("of yesterday", Completed(), NOW - timedelta(days=1)), flow_run("tonight", Running())]
    told: list[dict[str, Any]] = []
    watch = Watch("scheduled", told.append, lambda _: runs)
    watch.look()
    watch.look()
    assert [(each["event"], each["run"]) for each in told] == [("started", "tonight")]
    runs[1].state, runs[1].end_time, runs[1].tags = Completed(), later, ["tiny", "version 3"]
    runs.insert(0, flow_run("quick", Crashed(message="killed"), later))
    watch.look()
    watch.look()
    assert [(each["event"], each["run"]) for each in told[1:]] == [
        *(("ended", "tonight"), ("started", "quick"), ("ended", "quick")),
    ]
    assert (told[1]["state"], told[1]["version"], told[1]["seconds"]) == ("Completed", "3", 41.2)
    assert (told[3]["state"], told[3]["message"], told[3]["version"]) == ("Crashed", "killed", None)


def test_a_run_that_never_started_is_told_when_it_has_failed() -> None:
    late = flow_run("tonight", State(type=StateType.FAILED, name="Failed", message="no such flow"), NOW)
    late.start_time = None
    late.end_time = NOW + timedelta(hours=1)
    told: list[dict[str, Any]] = []
    seen: list[FlowRun] = []
    watch = Watch("scheduled", told.append, lambda _: seen)
    watch.look()
    seen.append(late)
    watch.look()
    assert [(each["event"], each["message"]) for each in told] == [("ended", "no such flow")]


def test_the_lines_of_a_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    due = datetime(2026, 11, 27, 2, 3, 12, tzinfo=UTC)
    for told in (
        {"event": "due", "at": due},
        {"event": "started", "run": "tiny", "due": due, "at": due},
        {"event": "ended", "run": "tiny", "state": "Completed", "message": "all", "version": "3", "seconds": 41.25},
        {"event": "ended", "run": "tiny", "state": "Failed", "message": "a\n b", "version": None, "seconds": 2.0},
    ):
        _tell_of_schedule(told)
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "The next run starts at 2026-11-27 02:03:12 UTC."
    assert [line.partition(" ")[2] for line in rest] == [
        *("run tiny starts", "run tiny ended: Completed, version 3, 41.2 s", "run tiny ended: Failed, 2.0 s: a b"),
    ]
