"""A study of outliers on a tiny workspace: what it measures, that it goes on where it was, what it refuses."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dass
from dass.engine.variants import Variants
from dass.errors import InputError
from dass.method.methods import Score
from dass.model.pretrained import load_model
from tasks.study.cells import Asked, Cell
from tasks.study.outliers import OutlierStudy
from tasks.study.results import study_outliers, write_page
from tasks.study.tables import read_study
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings
from tasks.workspace.settings.calibration import Calibration

NAME = "tiny"  # as it is registered
SMALL: dict[str, Any] = {
    "patterns": ("2:4", "50%"),
    "seeds": (0, 1),
    "samples": 4,
    "sizes": (2,),
    "sources": ("self",),
    "side_seeds": 1,
    "alphas": (0.0, 1.0),
    "windows": 3,
}


def _table(folder: Path, name: str) -> list[dict[str, Any]]:
    return read_study(folder, "outliers", [name])[1][name]


@pytest.fixture(scope="module")
def study(finished_template: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Path]:
    from tasks.workspace.settings import load_settings
    from tests.workspaces import copy_workspace

    ws = copy_workspace(finished_template, tmp_path_factory.mktemp("study"))
    study_outliers(ws, load_settings(ws.params), Asked(**SMALL), ws.root / "out", "dass study outliers")
    return ws, ws.root / "out"


def test_every_cell_is_there_and_down_is_measured_once_for_wanda_and_dass(study: tuple[Workspace, Path]) -> None:
    rows = _table(study[1], "ablation")
    asked = Asked(**SMALL)
    assert len(rows) == len(asked.cells) == len(set(asked.cells))
    main = [row for row in rows if row["source"] == "calibration" and row["samples"] == 4]
    scores = {"wanda", "dass α 0", "dass α 0.5", "dass α 1"}
    for pattern in SMALL["patterns"]:
        for seed in SMALL["seeds"]:
            of = [row for row in main if (row["pattern"], row["seed"]) == (pattern, seed)]
            assert {row["score"] for row in of if row["part"] == "gate+up"} == scores
            assert [row["score"] for row in of if row["part"] == "down"] == ["wanda"]
    assert {(row["source"], row["samples"], row["seed"]) for row in rows if row not in main} == {
        (None, None, None),
        ("calibration", 2, 0),
        ("self", 4, 0),
    }
    assert all(row["kl"] > 0.0 and row["model"] == NAME for row in rows)


def test_a_cell_is_what_pruning_that_part_alone_costs(study: tuple[Workspace, Path]) -> None:
    ws, folder = study
    (path,) = [
        path
        for path in (ws.private / "study" / "windows").iterdir()
        if len(load_file(path)["input_ids"]) == 4 and _is_seed(path, ws, 1)
    ]
    dense, pruned = load_model(ws.base), load_model(ws.base)
    windows = load_file(ws.evaluation / "tokens.safetensors")["input_ids"][:3]
    calibration = load_file(path)["input_ids"]
    dass.prune(pruned, calibration, "wanda", pattern="2:4", propagation="dense", only=["gate_proj", "up_proj"])
    with torch.no_grad():
        one, other = (model(input_ids=windows).logits[:, :-1].double().log_softmax(-1) for model in (dense, pruned))
    (row,) = [
        row
        for row in _table(folder, "ablation")
        if (row["pattern"], row["part"], row["score"], row["source"], row["seed"], row["samples"])
        == ("2:4", "gate+up", "wanda", "calibration", 1, 4)
    ]
    assert row["kl"] == pytest.approx((one.exp() * (one - other)).sum(-1).mean().item(), rel=1e-3)


def _is_seed(path: Path, ws: Workspace, seed: int) -> bool:
    from tasks.study.bench import Bench
    from tasks.workspace.settings import load_settings

    drawn = Bench(ws, load_settings(ws.params), 3).draw("calibration", seed, 4)
    return torch.equal(drawn.windows_WL, load_file(path)["input_ids"])


def test_outliers_of_every_layer_seed_and_source(study: tuple[Workspace, Path]) -> None:
    rows = _table(study[1], "outliers")
    assert {(row["source"], row["seed"]) for row in rows} == {("calibration", 0), ("calibration", 1), ("self", 0)}
    assert len(rows) == 3 * 3 * 2
    assert {(row["activation"], row["channels"]) for row in rows} == {("input", 32), ("intermediate", 64)}
    assert all(0.0 <= row["beyond_10"] <= row["beyond_5"] <= 1.0 and row["kurtosis"] >= 1.0 for row in rows)


def test_masks_of_two_seeds_are_compared(study: tuple[Workspace, Path]) -> None:
    rows = _table(study[1], "stability")
    assert {(row["seed"], row["other_seed"]) for row in rows} == {(0, 1)}
    assert all(1 / 3 < row["jaccard"] <= 1.0 for row in rows)
    of_magnitudes = [row["jaccard"] for row in rows if row["score"] == "dass α 0"]
    assert set(of_magnitudes) == {1.0}  # it looks at no activation


def test_the_page_has_tables_plots_and_a_verdict(study: tuple[Workspace, Path]) -> None:
    folder = study[1]
    text = (folder / "outliers.md").read_text(encoding="utf-8")
    for heading in ("Verdict", "Outlier channels", "Only a part pruned", "Calibration windows", "Mask stability"):
        assert f"# {heading}" in text
    assert "±" in text
    assert "not measured" not in text
    for name in ("outliers", "ablation", "alpha", "windows"):
        assert f"]({name}.png)" in text
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_study_computes_nothing_and_writes_the_same_bytes(
    study: tuple[Workspace, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.workspace.settings import load_settings

    ws, folder = study
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(Variants, "__init__", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr("tasks.study.bench.dense_statistics", lambda *_: pytest.fail("collected again"))
    study_outliers(ws, load_settings(ws.params), Asked(**SMALL), folder, "dass study outliers")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_killed_study_goes_on_behind_its_last_cells(
    finished: Workspace, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(**{**SMALL, "patterns": ("2:4",), "sizes": (), "sources": (), "windows": 1})
    judged: list[int] = []
    judge = Variants.judge

    def dies(self: Variants, variants: list[Any], first: int = 0) -> Any:
        if judged:
            raise KeyboardInterrupt
        judged.append(len(variants))
        return judge(self, variants, first)

    monkeypatch.setattr(Variants, "judge", dies)
    with pytest.raises(KeyboardInterrupt):
        OutlierStudy(finished, settings, asked).measure()
    more: list[int] = []

    def counts(self: Variants, variants: list[Any], first: int = 0) -> Any:
        more.append(len(variants))
        return judge(self, variants, first)

    monkeypatch.setattr(Variants, "judge", counts)
    OutlierStudy(finished, settings, asked).measure()
    assert sum(judged + more) == len(asked.cells)


def test_studies_of_two_models_share_a_page(study: tuple[Workspace, Path], tmp_path: Path) -> None:
    import json
    import shutil

    _, folder = study
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    with pytest.raises(InputError, match="one a model"):
        write_page([folder, other], tmp_path / "page.md")
    about = json.loads((other / "study.json").read_text())
    (other / "study.json").write_text(json.dumps({**about, "model": "larger", "parameters": 10**9}))
    done = write_page([other, folder], tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert text.index(f"## {NAME}") < text.index("## larger")
    assert "Across sizes" in text
    assert "dass study outliers --workspace larger\ndass study page tiny/study/outliers larger/study/outliers" in text
    pictures = re.findall(r"\]\((.*?\.png)\)", text)
    assert len(pictures) == 1 + 2 * 4
    for picture in pictures:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert len(done["verdict"]) == 3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"patterns": ()}, "--patterns is empty"),
        ({"seeds": (0, 0)}, "something twice"),
        ({"patterns": ("5:4",)}, "removes nothing or everything"),
        ({"patterns": ("unstructured",)}, "expected a share"),
        ({"patterns": ("130%",)}, "sparsity is 1.3"),
        ({"alphas": (float("nan"),)}, "--alphas holds nan"),
        ({"samples": 0}, "--samples holds 0"),
        ({"windows": 0}, "--windows holds 0"),
        ({"seeds": (-1,)}, "--seeds holds -1"),
    ],
)
def test_what_is_asked_wrongly_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Asked(**{**SMALL, **changes})


def test_what_the_workspace_cannot_give_is_refused_before_any_work(finished: Workspace, settings: Settings) -> None:
    for changes, told in (
        ({"sources": ("code",)}, "--sources holds code"),
        ({"windows": 99}, "--windows is 99: expected 1 to 5"),
        ({"patterns": ("3:5",)}, "5"),
    ):
        with pytest.raises(InputError, match=told):
            OutlierStudy(finished, settings, Asked(**{**SMALL, **changes}))
    other = {"code": {"uri": "./model/config.json", "share": 0.5}}
    unpinned = settings.model_copy(
        update={"calibration": Calibration.model_validate({**settings.calibration.model_dump(), "texts": other})}
    )
    with pytest.raises(InputError, match=r"calibration\.texts\.code\. Run: dass pin"):
        OutlierStudy(finished, unpinned, Asked(**{**SMALL, "sources": ("code",)}))
    (finished.evaluation / "tokens.safetensors").unlink()
    with pytest.raises(InputError, match="dass run --until baseline"):
        OutlierStudy(finished, settings, Asked(**SMALL))
    assert not (finished.private / "study").exists()


def test_a_folder_of_something_else_is_left_alone(finished: Workspace, settings: Settings) -> None:
    with pytest.raises(InputError, match="something else than a study"):
        study_outliers(finished, settings, Asked(**SMALL), finished.base, "dass study outliers")


def test_cells_name_their_scores() -> None:
    row = Cell("2:4", "gate+up", Score("dass", 0.5), "calibration", 0, 4).as_row()
    assert (row["score"], row["method"], row["alpha"]) == ("dass α 0.5", "dass", 0.5)
