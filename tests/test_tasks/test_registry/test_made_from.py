"""A version of several texts, refined by swaps, re-fitted by blocks and trained: records, card and proof say so."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from dass.files import read_json
from tasks.promotion.verification import verify_version
from tasks.registry.registration import register
from tasks.registry.show import render, show
from tasks.registry.tracking import tracking
from tasks.registry.versions import find_version, folder_of
from tasks.sources.calibrated_on import sources_of
from tasks.workspace.folder import Workspace
from tests.workspaces import STAGES, change_settings, copy_workspace, start_workspace

CODE = "".join(f"def f{number}(x):\n    return x + {number}\n" for number in range(400))
SETTINGS: dict[str, Any] = {
    "calibration__samples": 8,
    "calibration__texts": {"code": {"uri": "./code.txt", "share": 0.25}},
    "prune__pattern": "2:4",
    "prune__refine": "swaps",
    "prune__update": "reconstruct-block",
    "prune__validation_share": 0.25,
    "prune__epochs": 2,
    "prune__tune_norms": True,
    "recover__steps": 2,
    "recover__windows": 10,
    "recover__step_tokens": 64,
    "recover__batch_tokens": 64,
}
PROVENANCE: dict[str, Any] = {"git_commit": None, "git_dirty": None, "dvc": {}, "seconds": {}}


@pytest.fixture(scope="module")
def made(finished_template: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The result; mlflow.db is migrated and empty."""
    ws, _ = start_workspace(tmp_path_factory.mktemp("made"))
    shutil.copy(finished_template.root / "mlflow.db", ws.root)
    (ws.root / "code.txt").write_text(CODE, encoding="utf-8")
    settings = change_settings(ws, **SETTINGS)
    for stage in STAGES:
        stage(ws, settings)
    return ws


@pytest.mark.parametrize("artifact", ["checkpoint", "masks"])
def test_texts_swaps_blocks_and_training_are_recorded_and_proved(
    artifact: str, made: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    ws = copy_workspace(made, tmp_path / "ws")
    register(ws, change_settings(ws, register__artifact=artifact, **SETTINGS), PROVENANCE)

    proof = verify_version(ws, "tiny", "1")
    assert not proof.failed, proof
    with tracking(ws) as client, folder_of(client, find_version(client, "tiny", "1")) as folder:
        recovery = read_json(folder / "dass" / "recovery.json")
        counted = {name: each["windows"] for name, each in sources_of(recovery["text"]).items()}
        assert counted == {"calibration": 8, "code": 2}
        said = (folder / "README.md").read_text(encoding="utf-8")
    assert "tokens of `./text.txt` (6 windows), `./code.txt` (2 windows)" in said
    assert "10 windows of `./text.txt` (8 windows), `./code.txt` (2 windows)" in said
    assert "refined by at most 100 swaps a row" in said
    record = show(ws, "1")
    assert all(layer["refined"] is not None for layer in record["layers"])
    assert render(record)
