"""Who may work on a point."""

import json
import pickle
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tasks.sweep.workers import RefusedWorker, check_worker, packages, wanted_of_worker
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, load_settings


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path)
    made.base.mkdir(parents=True)
    (made.base / "source.json").write_text("{}", encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(Path(__file__).parents[3] / "params.yaml")


def test_a_worker_like_the_sweeps_machine_is_taken(ws: Workspace, settings: Settings) -> None:
    check_worker(ws, settings, wanted_of_worker(ws, settings))


@pytest.mark.parametrize("name", ["code", "base", "device", "python", "torch", "rich"])
def test_another_worker_is_refused_and_both_are_named(ws: Workspace, settings: Settings, name: str) -> None:
    wanted = json.loads(wanted_of_worker(ws, settings))
    with pytest.raises(RefusedWorker) as refused:
        check_worker(ws, settings, json.dumps({**wanted, name: "another"}))
    assert f" has {name} {wanted[name]} (the sweep has another): install" in str(refused.value)


def test_only_a_few_of_many_packages_are_named(ws: Workspace, settings: Settings) -> None:
    wanted = {f"package-{at}": "1" for at in range(9)}
    with pytest.raises(RefusedWorker, match=r"package-3 missing \(the sweep has 1\) and 5 more"):
        check_worker(ws, settings, json.dumps(wanted))


def test_a_worker_without_the_workspace_is_told_so(ws: Workspace, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(RefusedWorker, match="does not see .*elsewhere"):
        check_worker(Workspace(tmp_path / "elsewhere"), settings, wanted_of_worker(ws, settings))


def test_packages_are_those_that_a_lock_file_pins() -> None:
    lock = (Path(__file__).parents[3] / "requirements.lock").read_text(encoding="utf-8")
    pinned = {canonicalize_name(line.split("==")[0].strip()) for line in lock.splitlines() if "==" in line}
    found = packages().keys() - {"dass"}
    assert len(found) > 100
    assert {"torch", "prefect", "mlflow", "dvc-data", "sqlalchemy"} <= found
    assert found <= pinned


def test_who_refused_comes_back_with_the_error() -> None:
    error = RefusedWorker("other code")
    error.worker = "tcp://127.0.0.1:1"
    assert pickle.loads(pickle.dumps(error)).worker == error.worker
