import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import refits
from benchmarks.refits import METHODS, PATTERNS, WAYS, chosen, rows, section
from dass.errors import InputError
from dass.files import read_json
from flows.initialise import make_workspace
from tasks.workspace.recipes import RECIPES
from tests.models import save_tiny_checkpoint, tiny_text

SMALL = [
    "calibration.sequence_length=32",
    "evaluate.samples=4",
    "evaluate.sequence_length=32",
    "engine.device=cpu",
    "register.model=tiny-dass",
]


def record(method: str, way: str, pattern: str, pruned: float, **other: Any) -> dict[str, Any]:
    figures = {
        "model": "tiny",
        "dense": 10.0,
        "pruned": pruned,
        "ratio": pruned / 10,
        "interval": [1.25, 2.5],
        "kl": 0.75,
        "top1_agreement": 0.615,
        "calibration_tokens": 65536,
        "training_tokens": 0,
        "seconds": {"prune": 90.0, "recover": 0.6},
        "command_seconds": 360.0,
        "resumed": False,
    }
    return {**figures, "method": method, "way": way, "pattern": pattern, **other}


def test_every_combination_is_a_row_once_and_the_most_wanted_come_first() -> None:
    every = rows()
    assert len(set(every)) == len(every) == len(METHODS) * len(WAYS) * len(PATTERNS) + len(PATTERNS) * len(RECIPES)
    assert [row.name for row in every[:3]] == [
        "recipe, published, 2:4 paper",
        "recipe, quick, 2:4 paper",
        "recipe, best, 2:4 paper",
    ]


def test_rows_are_chosen_by_name_in_the_tables_order() -> None:
    some = chosen(["wanda, masks only, *", "sparsegpt*recover, 2:4 *"])
    assert [row.method for row in some] == ["sparsegpt", "sparsegpt", "wanda", "wanda", "wanda", "wanda"]
    assert len(chosen(["recipe, *"])) == len(PATTERNS) * len(RECIPES)
    with pytest.raises(InputError, match=r"--rows 'wanda 50 %' is no row: python -m benchmarks\.refits --list"):
        chosen(["*", "wanda 50 %"])


def test_a_row_names_all_that_another_may_have_changed() -> None:
    named = [{*RECIPES[row.recipe], *row.changes} for row in rows()]
    assert all(each == named[0] for each in named)


def test_only_what_was_measured_is_shown() -> None:
    records = [
        record("wanda", "reconstruct", "2:4 paper", 30.0),
        record("sparsegpt", "reconstruct + recover", "2:4 paper", 20.0, training_tokens=245760, resumed=True),
        record("recipe", "quick", "2:4 paper", 25.0),
        record("dass", "masks only", "50 %", 40.0, seconds={"prune": None, "recover": 0.6}),
    ]
    text = section(records)
    first, second, recipes = (part.splitlines() for part in text.split("\n\n") if part.startswith("|"))
    quality = "20.00 | 2.000 (1.250 to 2.500) | 0.750 | 61.5%"
    assert first[2:] == [
        f"| sparsegpt, reconstruct + recover | {quality} | more than 1.5 | 65,536 + 245,760 |",
        "| wanda, reconstruct | 30.00 | 3.000 (1.250 to 2.500) | 0.750 | 61.5% | 1.5 | 65,536 |",
    ]
    quality = "40.00 | 4.000 (1.250 to 2.500) | 0.750 | 61.5%"
    assert second[2:] == [f"| dass, masks only | {quality} | not measured | 65,536 |"]
    assert recipes[2:] == ["| tiny, quick, 2:4 paper | 25.00 | 2.500 (1.250 to 2.500) | 0.750 | 61.5% | 6.0 |"]
    assert "4:8" not in text
    assert "**tiny, 50 %** (dense 10.00)" in text
    assert "whole command" not in section(records[:2])


@pytest.mark.slow
def test_rows_are_measured_once_and_a_recovery_takes_the_masks_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny_checkpoint(tmp_path / "model")
    text = tiny_text(500)
    (tmp_path / "c4.txt").write_text(text[: len(text) // 2])
    (tmp_path / "wiki.txt").write_text(text[len(text) // 2 :])
    model, calibration, evaluation = (str(tmp_path / name) for name in ("model", "c4.txt", "wiki.txt"))
    made = make_workspace(tmp_path / "made", model, calibration, evaluation, changes=SMALL)
    monkeypatch.setattr(refits, "FOLDER", tmp_path)
    monkeypatch.setattr(refits, "_SAMPLES", 40)
    small = {"recover.steps": 2, "recover.step_tokens": 128, "recover.windows": 40}
    monkeypatch.setitem(WAYS, "reconstruct + recover", WAYS["reconstruct + recover"] | small)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    asked = ["--rows", "sparsegpt, reconstruct, 2:4 paper", "sparsegpt, reconstruct + recover, 2:4 paper"]
    where = ["--params", str(made.params), "--results", str(tmp_path / "refits.json")]
    monkeypatch.setattr(sys, "argv", ["refits.py", *where, *asked])
    refits.main()
    first, second = read_json(tmp_path / "refits.json")["records"]
    assert (first["way"], first["training_tokens"]) == ("reconstruct", 0)
    assert (second["way"], second["training_tokens"]) == ("reconstruct + recover", 256)
    assert second["seconds"]["prune"] == first["seconds"]["prune"] > 0
    assert second["seconds"]["recover"] > first["seconds"]["recover"]
    assert first["calibration_tokens"] == 40 * 32
    assert first["dense"] == second["dense"]
    assert 0.49 < first["mlp_sparsity"] < 0.51
    assert "| sparsegpt, reconstruct + recover |" in section([first, second])
    refits.main()  # found in the results
    assert read_json(tmp_path / "refits.json")["records"] == [first, second]
    monkeypatch.setattr(sys, "argv", ["refits.py", *where, *asked, "--list"])
    capsys.readouterr()
    refits.main()
    listed = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[0] for line in listed] == ["measured", "measured"]
