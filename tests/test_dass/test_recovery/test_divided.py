"""A recovery whose models are divided among two processes: the losses of one, the zeros exact, and what was stopped
goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dass.files import read_json
from tests.test_dass.test_recovery.pruned import Pruned, recipe, trained

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("gemma3_text", {"train": "all", "mse": 0.5, "activation_checkpointing": True}),
        ("mixtral", {"train": "mlp", "batch_tokens": 16, "step_tokens": 48}),  # 3 windows: one rank has 2 of them
    ],
)
def test_divided_it_has_the_losses_of_one_and_goes_on_where_it_was(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    pruned = Pruned(tmp_path, family)
    expected = trained(pruned.recovery(recipe(steps=6, **changes), "alone"))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.divided_rank", str(tmp_path), json.dumps(changes)],
            cwd=ROOT,
            env={**os.environ, "WORLD_SIZE": "2", "RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    assert [each.wait(timeout=240) for each in ranks] == [0, 0]
    told = read_json(tmp_path / "told.json")
    for one, other in zip(expected.history, told["history"], strict=True):
        assert other == pytest.approx(one, rel=1e-3)
    assert told["resumed_at"] == 2
    assert told["same"]
    assert told["zeros"]
    assert 0.45 < told["share"] < 0.55
    assert len(told["states"]) == 2
    assert len(set(told["states"])) == 1
