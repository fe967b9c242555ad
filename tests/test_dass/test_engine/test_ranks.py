"""Processes that share the calibration windows make the masks that one process makes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
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
with joined_ranks() as ranks:
    for name, options in json.loads(sys.argv[6]).items():
        decoder = StreamedDecoder(base, torch.device("cpu"), fast_dtype(base))
        windows, buffering = load_file(tokens)["input_ids"], Buffering(batch_tokens=64)
        run = CheckpointRun(decoder, windows, plan(**options), work / name, buffering=buffering, ranks=ranks)
        for index in range(layers):
            if dies_in == str(index) and ranks.rank == 1:
                os._exit(7)
            run.layer(index)
        ranks.wait()
"""
Plans = dict[str, dict[str, Any]]
PLAIN: Plans = {"plain": {}}
REFITS: Plans = {name: {"update": name, "epochs": 2} for name in ("reconstruct", "reconstruct-block")}
HELD_BACK: Plans = {name: {**how, "validation_share": 0.5} for name, how in REFITS.items()}  # all that rank 1 has
PLANS: Plans = {"dass": {"method": "dass"}, "auto": {"method": "auto"}, **HELD_BACK}


def start(
    base: Path, tokens: Path, work: Path, processes: int, plans: Plans, layers: int = 3, dies_in: str = "never"
) -> int:
    """Work on each plan in the folder of its name. In one job: starting it takes longer than pruning a tiny model."""
    script = work.with_suffix(".py")
    script.write_text(_RANK, encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    arguments = [str(script), str(base), str(tokens), str(work), str(layers), dies_in, json.dumps(plans)]
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


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the ranks have: two would add up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    tokens = folder / "tokens.safetensors"
    save_file({"input_ids": tiny_tokens(10, 32)}, tokens)
    return save_tiny_checkpoint(folder / "model", dtype=torch.bfloat16), tokens


@pytest.fixture(scope="module")
def of_two(tiny: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks made of each of `PLANS`."""
    work = tmp_path_factory.mktemp("ranks") / "two"
    assert start(*tiny, work, 2, PLANS) == 0
    return work


def digests_of_one(base: Path, tokens: Path, work: Path, **options: Any) -> dict[str, str]:
    """The same, made by this process alone."""
    decoder = StreamedDecoder(base, torch.device("cpu"), fast_dtype(base))
    buffering = Buffering(batch_tokens=64)
    run = CheckpointRun(decoder, load_file(tokens)["input_ids"], plan(**options), work, buffering=buffering)
    for index in range(3):
        run.layer(index)
    return digests(work)


@pytest.mark.parametrize("method", ["dass", "auto"])
def test_two_ranks_make_the_masks_of_one(method: str, of_two: Path, tiny: tuple[Path, Path], tmp_path: Path) -> None:
    work, alone = of_two / method, tmp_path / "alone"
    found = digests(work)
    assert len(found) == 3
    assert found == digests_of_one(*tiny, alone, method=method)
    records = [sorted(folder.glob("auto/*.json")) for folder in (work, alone)]
    assert bool(records[0]) == (method == "auto")
    choices = [Choice.of(read_json(found[0])) for found in records if found]
    assert all(choice.scores == choices[0].scores for choice in choices)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_and_finished_layers_are_gone_on_with(
    tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    assert start(*tiny, work, 2, PLAIN, dies_in="2") != 0
    assert set(digests(work / "plain")) == {"layer_000.safetensors", "layer_001.safetensors"}
    assert start(*tiny, work, 2, PLAIN) == 0
    assert digests(work / "plain") == digests_of_one(*tiny, tmp_path / "undisturbed")


@pytest.mark.parametrize("update", REFITS)
def test_two_ranks_refit_as_one(update: str, of_two: Path, tiny: tuple[Path, Path], tmp_path: Path) -> None:
    check_refitted_as_one(of_two / update, tiny, tmp_path / "alone", HELD_BACK[update])


@pytest.mark.slow
def test_two_ranks_refit_as_one_on_all_windows(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    assert start(*tiny, tmp_path / "two", 2, REFITS) == 0
    for update, how in REFITS.items():
        check_refitted_as_one(tmp_path / "two" / update, tiny, tmp_path / "alone" / update, how)


def check_refitted_as_one(work: Path, tiny: tuple[Path, Path], alone: Path, how: dict[str, Any]) -> None:
    assert digests(work) == digests_of_one(*tiny, alone, **how)
    for two, one in zip(finished_reports(work), finished_reports(alone), strict=True):
        assert two.fitted_error == pytest.approx(one.fitted_error, rel=1e-3)
        share = how.get("validation_share")
        assert two.held_back_error == (pytest.approx(one.held_back_error, rel=1e-3) if share else None)


@pytest.mark.slow
def test_four_ranks_make_the_masks_of_one(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    assert start(*tiny, tmp_path / "work", 4, PLAIN) == 0
    assert digests(tmp_path / "work" / "plain") == digests_of_one(*tiny, tmp_path / "alone")


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
        assert start(real_base(ROOT / "params.yaml"), tokens, work, processes, PLAIN, layers=4) == 0
        found.append(digests(work / "plain"))
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
