"""The run that shows work while it goes on: seen at once, taken by registration, ended or removed otherwise."""

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
from mlflow import MlflowClient

from dass.engine.layer_report import LayerReport
from tasks.registry import live as live_module
from tasks.registry.live import LiveRun
from tasks.registry.registration import register
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings
from tests.servers import free_port
from tests.workspaces import change_settings

PROVENANCE: dict[str, Any] = {"git_commit": None, "git_dirty": None, "dvc": {}, "seconds": {"prune": 1.0}}
FLOW_RUN = {"id": "0f1e", "name": "tiny: dass 50%"}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is held back."""
    monkeypatch.setattr(live_module, "_EVERY_SECONDS", 0.0)


@pytest.fixture
def live(finished: Workspace, settings: Settings) -> Iterator[LiveRun]:
    with LiveRun(finished, settings) as run:
        run.begin(FLOW_RUN)
        yield run


def only_run(finished: Workspace) -> Any:
    client = MlflowClient(f"sqlite:///{finished.root / 'mlflow.db'}")
    [experiment] = [each for each in client.search_experiments() if each.name == "tests"]
    [run] = client.search_runs([experiment.experiment_id])
    return run


def history(finished: Workspace, name: str) -> list[tuple[int, float]]:
    client = MlflowClient(f"sqlite:///{finished.root / 'mlflow.db'}")
    return [(each.step, each.value) for each in client.get_metric_history(only_run(finished).info.run_id, name)]


def report_of(index: int) -> LayerReport:
    shares: Any = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), 0.5)
    return LayerReport(index, "0.5", "dass", 0.5, shares, {"median": 1.0}, 0.25 + index, dict.fromkeys(shares, False))


def test_layers_and_losses_are_seen_while_the_work_goes_on(finished: Workspace, live: LiveRun) -> None:
    live.note_layer(report_of(0))
    live.note_step({"step": 0, "held_back": 3.5})
    live.note_step({"step": 1, "loss": 2.5})
    run = only_run(finished)
    assert (run.info.status, run.info.run_name) == ("RUNNING", "dass 50%")
    assert run.data.tags["prefect.flow_run_id"] == FLOW_RUN["id"]
    assert run.data.tags["mlflow.source.name"] == "dass run"
    assert history(finished, "layer.relative_error") == [(0, 0.25)]
    assert history(finished, "recover.step.held_back") == [(0, 3.5)]
    assert history(finished, "recover.step.loss") == [(1, 2.5)]


def test_registration_goes_on_with_it_and_shows_nothing_twice(
    finished: Workspace, settings: Settings, live: LiveRun
) -> None:
    live.note_layer(report_of(0))
    made = register(finished, settings, PROVENANCE, live)
    run = only_run(finished)
    assert (made.created, made.run_id) == (True, run.info.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "dass 50% #1")
    steps = [step for step, _ in history(finished, "layer.relative_error")]
    assert sorted(steps) == sorted(set(steps))
    assert len(steps) > 1
    assert "ratio" in run.data.metrics
    assert not list((finished.private / "registering").iterdir())


def test_a_result_that_was_registered_before_keeps_its_run(finished: Workspace, settings: Settings) -> None:
    first = register(finished, settings, PROVENANCE)
    with LiveRun(finished, settings) as again:
        again.begin()
        assert not register(finished, settings, PROVENANCE, again).created
    assert only_run(finished).info.run_id == first.run_id
    assert not list((finished.private / "registering").iterdir())


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_work_that_fails_ends_it(
    finished: Workspace, settings: Settings, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), LiveRun(finished, settings) as run:
        run.begin()
        run.note_step({"step": 1, "loss": 2.5})
        raise error
    assert only_run(finished).info.status == status
    assert history(finished, "recover.step.loss") == [(1, 2.5)]
    assert not list((finished.private / "registering").iterdir())


def test_what_a_killed_process_began_is_ended_by_the_next_one_before_it_works(
    finished: Workspace, settings: Settings, live: LiveRun
) -> None:
    killed = only_run(finished).info.run_id
    live.attempt = None  # its process is gone; the note is not
    with LiveRun(finished, change_settings(finished, register__experiment="others")) as again:
        again.begin()
        assert only_run(finished).info.run_id == killed
        assert only_run(finished).info.status == "KILLED"


def test_a_registration_that_fails_ends_it_too(finished: Workspace, settings: Settings, live: LiveRun) -> None:
    (finished.evaluation / "tokens.safetensors").write_bytes(b"damaged")
    with pytest.raises(Exception, match="header"):
        register(finished, settings, PROVENANCE, live)
    assert only_run(finished).info.status == "FAILED"


def test_a_run_that_never_worked_long_asks_nobody(finished: Workspace, settings: Settings) -> None:
    (finished.root / "mlflow.db").unlink()
    with LiveRun(finished, settings) as run:
        run.note_step({"step": 1, "loss": 2.5})
    assert not (finished.root / "mlflow.db").exists()


@pytest.mark.faults("MLflow's server is gone")
def test_a_server_that_is_silent_does_not_stop_the_work(
    finished: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("DASS_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level(logging.WARNING, logger="dass"), LiveRun(finished, settings) as run:
        run.begin()
        run.note_step({"step": 1, "loss": 2.5})
    [told] = [record.message for record in caplog.records if "MLflow shows nothing more" in record.message]
    assert "\n" not in told


def test_the_machines_load_is_shown(finished: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "_SAMPLE_SECONDS", 0.05)
    monkeypatch.setattr(live_module, "_SAMPLES", 1)
    with LiveRun(finished, settings) as run:
        run.begin()
        deadline = time.monotonic() + 30
        while "system/cpu_utilization_percentage" not in only_run(finished).data.metrics:
            assert time.monotonic() < deadline
            time.sleep(0.05)
