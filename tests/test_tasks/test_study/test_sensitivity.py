"""A study of sensitivity on a tiny workspace: one matrix at a time, the guess beside it, mixed allocations."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dass
from dass.engine.variants import Variants
from dass.errors import InputError
from dass.model.pretrained import load_model
from tasks.study.matrices import AskedMatrices, MatrixStudy
from tasks.study.mixes import allocated, evenly
from tasks.study.sensitivity import rank_correlation, study_sensitivity
from tasks.study.tables import read_study
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, load_settings
from tests.workspaces import change_settings, copy_workspace

ASKED = AskedMatrices(("2:4", "4:8"), 3, (0.3,))


@pytest.fixture(scope="module")
def measured(finished_template: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Path]:
    ws = copy_workspace(finished_template, tmp_path_factory.mktemp("sensitivity"))
    study_sensitivity(ws, load_settings(ws.params), ASKED, ws.root / "out", "dass study sensitivity")
    return ws, ws.root / "out"


def _rows(folder: Path, name: str = "sensitivity") -> list[dict[str, Any]]:
    return read_study(folder, "sensitivity", [name])[1][name]


def test_a_row_for_each_layer_projection_and_pattern(measured: tuple[Workspace, Path]) -> None:
    rows = _rows(measured[1])
    assert len({(row["layer"], row["projection"], row["pattern"]) for row in rows}) == len(rows) == 3 * 3 * 2
    assert all(row["kl"] > 0.0 and 0.0 < row["guess"] < 1.0 and row["removed"] * 2 == row["weights"] for row in rows)
    assert -1.0 <= (rank_correlation(rows) or 0.0) <= 1.0


def test_a_row_is_what_pruning_that_matrix_alone_costs(measured: tuple[Workspace, Path]) -> None:
    ws, folder = measured
    (path,) = (ws.private / "study" / "windows").iterdir()
    dense, pruned = load_model(ws.base), load_model(ws.base)
    fitted, windows = load_file(path)["input_ids"].split([6, 3])
    dass.prune(
        pruned,
        fitted,
        "dass",
        pattern="2:4",
        propagation="dense",
        only=["down_proj"],
        skip_layers=[0, 2],
    )
    with torch.no_grad():
        one, other = (model(input_ids=windows).logits[:, :-1].double().log_softmax(-1) for model in (dense, pruned))
    (row,) = [
        row for row in _rows(folder) if (row["layer"], row["projection"], row["pattern"]) == (1, "down_proj", "2:4")
    ]
    assert row["kl"] == pytest.approx((one.exp() * (one - other)).sum(-1).mean().item(), rel=1e-3)


def test_allocations_of_one_total_remove_as_much(measured: tuple[Workspace, Path]) -> None:
    _, folder = measured
    mixes = _rows(folder, "allocations")
    assert [row["allocation"] for row in mixes] == ["sensitivity", "guess", "uniform 2:4", "owl 2:4"]
    assert len({row["removed"] for row in mixes}) == 1
    assert mixes[0]["removed"] >= 0.3
    assert mixes[0]["sum_of_kl"] == min(row["sum_of_kl"] for row in mixes)
    (layers,) = json.loads((folder / "allocations.json").read_text()).values()
    assert {layer["down_proj"] for layer in layers} <= {"dense", "2:4", "4:8"}


def test_shares_are_compared_with_uniform_and_owl_themselves(measured: tuple[Workspace, Path]) -> None:
    ws, _ = measured
    asked = AskedMatrices(("40%", "50%", "60%"), 2, (0.5,))
    folder = ws.root / "shares"
    study_sensitivity(ws, load_settings(ws.params), asked, folder, "dass study sensitivity")
    mixes = _rows(folder, "allocations")
    assert [row["allocation"] for row in mixes] == ["sensitivity", "guess", "uniform", "owl"]
    assert all(row["removed"] == pytest.approx(0.5, abs=0.02) for row in mixes)
    assert (folder / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert "| 50 % | owl |" in (folder / "sensitivity.md").read_text(encoding="utf-8")


def test_a_finished_study_computes_nothing(measured: tuple[Workspace, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    ws, folder = measured
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(Variants, "__init__", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr("tasks.study.matrices.dense_statistics", lambda *_: pytest.fail("collected again"))
    study_sensitivity(ws, load_settings(ws.params), ASKED, folder, "dass study sensitivity")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_least_harmful_matrices_go_first() -> None:
    rows = [
        {"layer": layer, "projection": "down_proj", "pattern": "2:4", "weights": 10, "removed": 5, "kl": cost}
        for layer, cost in enumerate((0.4, 0.1, 0.3, 0.2))
    ]
    assert set(allocated(rows, 0.25)) == {(1, "down_proj"), (3, "down_proj")}
    assert set(evenly(rows, 0.25, "2:4", order=[0.0, 9.0, 1.0, 9.0])) == {(0, "down_proj"), (2, "down_proj")}
    assert len(evenly(rows, 0.3, "2:4")) == 3
    with pytest.raises(InputError, match="removes less"):
        evenly(rows, 0.6, "2:4")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (((), 1), "--patterns is empty"),
        ((("2:4", "2:4"), 1), "something twice"),
        ((("2:4",), 1, (0.6,)), "up to 0.5 by these patterns"),
        ((("all",), 1), "pattern is 'all'"),
    ],
)
def test_what_is_asked_wrongly_is_refused(arguments: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        AskedMatrices(*arguments)


@pytest.mark.parametrize("method", ["auto", "sparsegpt"])
def test_a_method_without_one_score_is_refused(finished: Workspace, settings: Settings, method: str) -> None:
    settings = change_settings(finished, prune__method=method)
    with pytest.raises(InputError, match="Use dass, wanda or magnitude"):
        MatrixStudy(finished, settings, ASKED)
