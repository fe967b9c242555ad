"""A run over a checkpoint on disk: killed anywhere, it goes on and ends in the same bytes."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import dass
from dass.files import sha256_file
from dass.masks import MaskFile
from tests.models import save_tiny_checkpoint, tiny_tokens

LAYERS, MOMENTS = 8, 10
_PAUSE = 0.03  # after each layer, so that moments fall inside the run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("base") / "model", num_hidden_layers=LAYERS)


def prune(base: Path, root: Path, **options: object) -> dass.CheckpointReport:
    return dass.prune_checkpoint(
        base,
        root / "pruned",
        tiny_tokens(4, 16),
        work=root / "work",
        on_layer=lambda _: time.sleep(_PAUSE),
        **options,  # type: ignore[arg-type]
    )


def in_a_process(work: Callable[[], object]) -> int:
    """Run `work` in a forked process of its own; returns its number."""
    process = os.fork()
    if process == 0:
        torch.set_num_threads(1)  # threads do not survive a fork
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return process


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.rglob("*.safetensors"))}


def masks(root: Path) -> dict[str, str]:
    """Of every finished layer. Not of the files: a layer's report holds seconds."""
    return {path.name: MaskFile(path).digest for path in sorted((root / "work").rglob("layer_*.safetensors"))}


@pytest.mark.parametrize(
    "options",
    [{}, {"checkpoint_every": 3, "method": "sparsegpt", "update": "reconstruct", "pattern": "2:4"}],
    ids=["dass", "updates and saved hidden states"],
)
def test_a_run_killed_at_any_moment_ends_in_the_bytes_of_an_undisturbed_one(
    base: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    undisturbed = tmp_path / "undisturbed"
    began = time.perf_counter()
    assert os.waitpid(in_a_process(lambda: prune(base, undisturbed, **options)), 0)[1] == 0
    duration = time.perf_counter() - began
    moments = random.Random(0)
    killed = 0
    for number in range(MOMENTS):
        root = tmp_path / str(number)
        process = in_a_process(lambda root=root: prune(base, root, **options))  # type: ignore[misc]
        time.sleep(moments.uniform(0.0, 0.9 * duration))
        os.kill(process, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(process, 0)[1])
        assert os.waitpid(in_a_process(lambda root=root: prune(base, root, **options)), 0)[1] == 0  # type: ignore[misc]
        assert digests(root / "pruned") == digests(undisturbed / "pruned")
        assert masks(root) == masks(undisturbed)
        assert len(masks(root)) == LAYERS
    assert killed >= MOMENTS // 2


def test_finished_layers_are_not_computed_again(base: Path, tmp_path: Path) -> None:
    assert prune(base, tmp_path).resumed == 0
    assert prune(base, tmp_path).resumed == LAYERS


@pytest.mark.parametrize(
    "changed", [{"alpha": 1.0}, {"pattern": "2:4"}, {"dtype": torch.bfloat16}, {"batch_tokens": 16}]
)
def test_a_changed_setting_never_continues_an_old_run(base: Path, tmp_path: Path, changed: dict[str, object]) -> None:
    prune(base, tmp_path)
    assert prune(base, tmp_path, **changed).resumed == 0


def test_a_half_written_layer_does_not_count(base: Path, tmp_path: Path) -> None:
    prune(base, tmp_path)
    last = next((tmp_path / "work").rglob(f"layer_{LAYERS - 1:03d}.safetensors"))
    last.rename(last.with_name(f".{last.name}.1.partial"))
    assert prune(base, tmp_path).resumed == LAYERS - 1


def test_without_a_work_folder_nothing_but_the_result_is_left(base: Path, tmp_path: Path) -> None:
    dass.prune_checkpoint(base, tmp_path / "pruned", tiny_tokens(4, 16))
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]
