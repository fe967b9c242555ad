"""Processes that calibrate together make the masks that one makes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dass.errors import InputError
from dass.masks import MaskFile
from dass.ranks import ALONE, Ranks, joined_ranks
from dass.run import read_report
from dass.updates import Updates
from tests.joined import prune
from tests.models import tiny_model

ROOT = Path(__file__).parents[2]
LAYERS = 3

SMALL = {"tokens": [7, 16], "batch_tokens": 16}  # seven batches: shares are not equal
JOBS: dict[str, dict[str, Any]] = {
    "dass": SMALL,
    "sparsegpt": SMALL | {"options": {"method": "sparsegpt", "pattern": "2:4", "update": "reconstruct"}},
    "dense owl": SMALL | {"options": {"propagation": "dense", "allocation": "owl", "update": "reconstruct"}},
    "owl": SMALL | {"options": {"allocation": "owl", "pattern": "4:8", "owl_bound": 0.2}, "checkpoint_every": 1},
    "large batches": {"tokens": [9, 16], "batch_tokens": 32},  # the last one is smaller
}


def torchrun(
    ranks: int, base: Path, folder: Path, jobs: dict[str, Any], **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `tests.joined` under torchrun on the loopback interface."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.run(
        [*command, "-m", "tests.joined", str(base), str(folder), json.dumps(jobs)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def digests(folder: Path) -> dict[str, str]:
    """Of the masks and new values of a run."""
    found = {path.name: MaskFile(path).digest for path in sorted(folder.glob("layer_*"))}
    return found | {path.name: Updates([path]).digest for path in sorted(folder.glob("updates_*"))}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints of a dense family and of a mixture."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("llama", "mixtral")}
    for name, folder in made.items():
        tiny_model(name).save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def expected(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What one process makes of every job."""
    folder = tmp_path_factory.mktemp("alone")
    for name, job in JOBS.items():
        prune(bases["llama"], folder / name, job, ALONE)
    return {name: digests(folder / name) for name in JOBS}


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_number_of_ranks_makes_the_same_masks(
    ranks: int, bases: dict[str, Path], expected: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    finished = torchrun(ranks, bases["llama"], tmp_path, JOBS, OMP_NUM_THREADS="1")
    assert finished.returncode == 0, finished.stderr[-2000:]
    for name in JOBS:
        assert digests(tmp_path / name) == expected[name], name


def test_experts_see_the_tokens_of_all_ranks_and_a_dead_rank_ends_the_job(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    mixture = SMALL | {"options": {"min_expert_tokens": 56, "update": "reconstruct"}}
    jobs = {"mixture": mixture, "dies": mixture | {"dies": [1, 1]}}
    ended = torchrun(2, bases["mixtral"], tmp_path, jobs, OMP_NUM_THREADS="1")
    assert ended.returncode != 0
    assert "SIGKILL" in ended.stderr or "Signal 9" in ended.stderr
    prune(bases["mixtral"], tmp_path / "alone", mixture, ALONE)
    one = digests(tmp_path / "alone")
    assert digests(tmp_path / "mixture") == one
    for index in range(LAYERS):
        reports = [read_report(tmp_path / name / f"layer_{index:03d}.safetensors") for name in ("alone", "mixture")]
        assert reports[0].starved_experts == reports[1].starved_experts
        assert reports[0].relative_error == pytest.approx(reports[1].relative_error, rel=1e-9)
    assert 0 < len(reports[0].starved_experts) < 4, "the limit lies between the experts"
    left = digests(tmp_path / "dies")
    assert left == {name: digest for name, digest in one.items() if "000" in name}, "layer 0 is whole, layer 1 is not"
    prune(bases["mixtral"], tmp_path / "dies", mixture, ALONE)
    assert digests(tmp_path / "dies") == one


def test_shares_are_whole_batches_and_cover_every_window_once() -> None:
    for count, unit, size in [(7, 1, 4), (9, 2, 4), (128, 4, 3), (5, 8, 1), (4, 1, 4)]:
        shares = [Ranks(rank, size).share(count, unit) for rank in range(size)]
        windows = [window for share in shares for window in range(count)[share]]
        assert windows == list(range(count))
        assert all(share.start % unit == 0 and share.start < share.stop for share in shares)
        sizes = [-(-(share.stop - share.start) // unit) for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_fewer_batches_than_ranks_are_refused() -> None:
    with pytest.raises(InputError, match=r"4 processes share 3 batches of 2 windows \(5 in all\): .*batch_tokens"):
        Ranks(0, 4).share(5, 2)


def test_without_torchrun_one_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_ranks() as ranks:
        assert ranks == ALONE
        assert ranks.is_first
        total = torch.ones(2)
        ranks.sum_(total)
        ranks.wait()
        assert total.tolist() == [1.0, 1.0]
    assert not torch.distributed.is_initialized()


@pytest.mark.real
def test_smollm2_s_first_four_layers_get_the_same_masks_from_1_2_and_4_ranks(
    real_base: Callable[[Path], Path], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    source = real_base(ROOT / "params.yaml")
    for path in source.iterdir():
        (base / path.name).symlink_to(path)
    config = json.loads((source / "config.json").read_text())
    (base / "config.json").unlink()
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    windows: dict[str, Any] = {"tokens": [8, 64], "batch_tokens": 128}
    jobs = {
        "dass": windows,
        "sparsegpt": windows | {"options": {"method": "sparsegpt", "pattern": "2:4"}},
    }
    found: dict[str, list[dict[str, str]]] = {name: [] for name in jobs}
    for ranks, threads in ((1, 1), (1, 2), (2, 1), (4, 1)):
        folder = tmp_path / f"{ranks} ranks {threads} threads"
        finished = torchrun(ranks, base, folder, jobs, OMP_NUM_THREADS=str(threads))
        assert finished.returncode == 0, finished.stderr[-2000:]
        for name in jobs:
            found[name].append({key: value for key, value in digests(folder / name).items() if "layer" in key})
    for name, several in found.items():
        assert len(several[0]) == 4
        assert all(other == several[0] for other in several), name


def test_the_digests_above_can_differ(tmp_path: Path, bases: dict[str, Path]) -> None:
    made: list[Tensor | dict[str, str]] = []
    for samples in (7, 6):
        prune(bases["llama"], tmp_path / str(samples), {"tokens": [samples, 16], "batch_tokens": 16}, ALONE)
        made.append(digests(tmp_path / str(samples)))
    assert made[0] != made[1]
