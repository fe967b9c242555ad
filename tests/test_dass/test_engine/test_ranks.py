"""Processes that share the calibration windows make the masks that one process makes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dass.engine.choice import Choice
from dass.engine.layerwise import Buffering
from dass.engine.ranks import ALONE, Ranks
from dass.engine.run import CheckpointRun, finished_reports
from dass.errors import InputError
from dass.files import read_json
from dass.masks.mask_file import MaskFile
from dass.method.plan import plan
from dass.model.streaming import StreamedDecoder
from tests.models import fast_dtype, save_tiny_checkpoint, tiny_tokens

ROOT = Path(__file__).parents[3]
_RANK = """
import json, os, sys, torch
from pathlib import Path
from safetensors.torch import load_file
from dass.engine.layerwise import Buffering
from dass.method.plan import plan
from dass.engine.ranks import joined_ranks
from dass.engine.run import CheckpointRun
from dass.model.streaming import StreamedDecoder
from tests.models import fast_dtype

base, tokens, work, layers, dies_in = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
what = plan(**json.loads(sys.argv[6]))
with joined_ranks() as ranks:
    decoder = StreamedDecoder(base, torch.device("cpu"), fast_dtype(base))
    buffering = Buffering(batch_tokens=64)
    run = CheckpointRun(decoder, load_file(tokens)["input_ids"], what, work, buffering=buffering, ranks=ranks)
    for index in range(layers):
        if dies_in == str(index) and ranks.rank == 1:
            os._exit(7)
        run.layer(index)
    ranks.wait()
"""


def start(
    base: Path, tokens: Path, work: Path, processes: int, layers: int, dies_in: str = "never", **options: Any
) -> int:
    script = work.with_suffix(".py")
    script.write_text(_RANK, encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    arguments = [str(script), str(base), str(tokens), str(work), str(layers), dies_in, json.dumps(options)]
    return subprocess.run(
        [*torchrun, "--nproc-per-node", str(processes), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
    ).returncode


def digests(work: Path) -> dict[str, str]:
    """Of each finished layer's masks, by file name."""
    return {path.name: MaskFile(path).digest for path in sorted(work.glob("layer_*.safetensors"))}


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, Path]:
    tokens = tmp_path / "tokens.safetensors"
    save_file({"input_ids": tiny_tokens(10, 32)}, tokens)
    return save_tiny_checkpoint(tmp_path / "model", dtype=torch.bfloat16), tokens


def digests_of_one(base: Path, tokens: Path, work: Path, **options: Any) -> dict[str, str]:
    """The same, made by this process alone."""
    decoder = StreamedDecoder(base, torch.device("cpu"), fast_dtype(base))
    buffering = Buffering(batch_tokens=64)
    run = CheckpointRun(decoder, load_file(tokens)["input_ids"], plan(**options), work, buffering=buffering)
    for index in range(3):
        run.layer(index)
    return digests(work)


@pytest.mark.parametrize("method", ["dass", "auto"])
def test_two_ranks_make_the_masks_of_one(method: str, tiny: tuple[Path, Path], tmp_path: Path) -> None:
    assert start(*tiny, tmp_path / "work", 2, layers=3, method=method) == 0
    found = digests(tmp_path / "work")
    assert len(found) == 3
    assert found == digests_of_one(*tiny, tmp_path / "alone", method=method)
    records = [sorted((tmp_path / name).glob("auto/*.json")) for name in ("work", "alone")]
    assert bool(records[0]) == (method == "auto")
    choices = [Choice.of(read_json(found[0])) for found in records if found]
    assert all(choice.scores == choices[0].scores for choice in choices)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_and_finished_layers_are_gone_on_with(
    tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    assert start(*tiny, work, 2, layers=3, dies_in="2") != 0
    assert set(digests(work)) == {"layer_000.safetensors", "layer_001.safetensors"}
    assert start(*tiny, work, 2, layers=3) == 0
    assert digests(work) == digests_of_one(*tiny, tmp_path / "undisturbed")


@pytest.mark.parametrize("share", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])  # half: all that rank 1 has
@pytest.mark.parametrize("update", ["reconstruct", "reconstruct-block"])
def test_two_ranks_refit_as_one(tiny: tuple[Path, Path], tmp_path: Path, update: str, share: float) -> None:
    options: dict[str, Any] = {"update": update, "validation_share": share, "epochs": 2}
    assert start(*tiny, tmp_path / "work", 2, layers=3, **options) == 0
    assert digests(tmp_path / "work") == digests_of_one(*tiny, tmp_path / "alone", **options)
    for two, one in zip(finished_reports(tmp_path / "work"), finished_reports(tmp_path / "alone"), strict=True):
        assert two.fitted_error == pytest.approx(one.fitted_error, rel=1e-3)
        assert two.held_back_error == (pytest.approx(one.held_back_error, rel=1e-3) if share else None)


@pytest.mark.slow
def test_four_ranks_make_the_masks_of_one(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    assert start(*tiny, tmp_path / "work", 4, layers=3) == 0
    assert digests(tmp_path / "work") == digests_of_one(*tiny, tmp_path / "alone")


@pytest.mark.real
@pytest.mark.slow
def test_ranks_agree_on_the_first_four_layers_of_a_real_model(
    real_base: Callable[[Path], Path], tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.safetensors"
    save_file({"input_ids": torch.randint(100, 40000, (8, 64), generator=torch.Generator().manual_seed(0))}, tokens)
    found = []
    for processes in (1, 2, 4):
        work = tmp_path / f"work{processes}"
        assert start(real_base(ROOT / "params.yaml"), tokens, work, processes, layers=4) == 0
        found.append(digests(work))
    assert len(found[0]) == 4
    assert found[0] == found[1] == found[2]


def test_shares_are_whole_batches_that_cover_every_window_once() -> None:
    batches = [slice(start, start + 4) for start in range(0, 20, 4)]
    shares = [Ranks(rank, 3).share(batches) for rank in range(3)]
    assert [each for share in shares for each in share] == batches
    assert all(shares)
    assert ALONE.share(batches) == batches


def test_fewer_batches_than_processes_are_refused() -> None:
    with pytest.raises(InputError, match=r"4 processes share 2 batches of windows \(16 in all\)"):
        Ranks(0, 4).share([slice(0, 8), slice(8, 16)])
