"""A run over a checkpoint on disk: killed anywhere, it goes on and ends in the same bytes."""

import errno
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import dass
from dass.engine.layer_report import LayerReport
from dass.engine.layerwise import Buffering
from dass.engine.pruner import LayerwisePruner
from dass.engine.run import CheckpointRun, read_report
from dass.errors import InputError
from dass.files import sha256_file
from dass.masks.mask_file import MaskFile
from dass.method.plan import plan
from dass.model.pretrained import load_model
from dass.model.streaming import StreamedDecoder
from tests.models import save_tiny_checkpoint, tiny_tokens

LAYERS, MOMENTS = 8, 10
_BLOCK: dict[str, Any] = {
    "checkpoint_every": 3,
    "update": "reconstruct-block",
    "pattern": "2:4",
    "epochs": 2,
    "validation_share": 0.25,
    "tune_norms": True,
}
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


@pytest.mark.faults("kill -9 of the engine", times=MOMENTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"checkpoint_every": 3, "method": "sparsegpt", "update": "reconstruct", "pattern": "2:4"},
        pytest.param(_BLOCK, marks=pytest.mark.slow),
    ],
    ids=["dass", "updates and saved hidden states", "two buffers of hidden states"],
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


class _Stop(Exception):
    """Raised behind a layer: the run dies there."""


def stop_behind(layers: int, base: Path, root: Path, **options: Any) -> None:
    """Start a run that dies behind some layers."""

    def on_layer(report: LayerReport) -> None:
        if report.layer == layers - 1:
            raise _Stop

    with pytest.raises(_Stop):
        dass.prune_checkpoint(
            base, root / "pruned", tiny_tokens(4, 16), work=root / "work", on_layer=on_layer, **options
        )


def go_on(base: Path, root: Path, **options: Any) -> dass.CheckpointReport:
    return dass.prune_checkpoint(base, root / "pruned", tiny_tokens(4, 16), work=root / "work", **options)


def never(*_: object, **__: object) -> None:
    raise AssertionError("called")


@pytest.mark.parametrize(("stopped", "replayed"), [(5, [4]), (6, [])])
def test_saved_hidden_states_spare_the_layers_before_them(
    stopped: int, replayed: list[int], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_behind(stopped, base, tmp_path, checkpoint_every=2)
    seen: list[int] = []
    original = LayerwisePruner.replay_layer

    def replay_layer(self: Any, index: int, *rest: Any) -> None:
        seen.append(index)
        original(self, index, *rest)

    monkeypatch.setattr(LayerwisePruner, "replay_layer", replay_layer)
    assert go_on(base, tmp_path, checkpoint_every=2).resumed == stopped
    assert seen == replayed
    assert not list((tmp_path / "work").glob("*/hidden_*")), "of no use behind the last layer"


@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize("stopped", [1, 4, 5])
def test_a_run_with_two_buffers_goes_on_in_the_same_bytes(
    stopped: int, every: int | None, base: Path, tmp_path: Path
) -> None:
    options = {**_BLOCK, "checkpoint_every": every}
    go_on(base, tmp_path / "whole", **options)
    stop_behind(stopped, base, tmp_path, **options)
    saved = sorted(path.name for path in (tmp_path / "work").glob("*/*hidden_*"))
    layer = stopped // 2 * 2
    expected = [f"dense_hidden_{layer:03d}_of_1_0.safetensors", f"hidden_{layer:03d}_of_1_0.safetensors"]
    assert saved == (expected if every and layer else [])
    assert go_on(base, tmp_path, **options).resumed == stopped
    assert digests(tmp_path / "pruned") == digests(tmp_path / "whole" / "pruned")
    assert not list((tmp_path / "work").glob("*/*hidden_*"))


def test_a_finished_run_is_written_again_without_a_token(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = go_on(base, tmp_path).layers
    before = digests(tmp_path / "pruned")
    monkeypatch.setattr(StreamedDecoder, "embed", never)
    assert go_on(base, tmp_path).layers == reports
    assert digests(tmp_path / "pruned") == before


def test_a_finished_layer_that_was_damaged_later_is_named(base: Path, tmp_path: Path) -> None:
    stop_behind(3, base, tmp_path)
    [path] = (tmp_path / "work").glob("*/layer_001.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"layer_001\.safetensors is damaged"):
        go_on(base, tmp_path)
    assert not (tmp_path / "pruned").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 32 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)


@pytest.mark.faults("the disk is full")
def test_a_full_disk_stops_the_run_and_it_goes_on_when_there_is_room(
    base: Path, small_disk: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"checkpoint_every": 2, "method": "sparsegpt", "pattern": "2:4"}
    go_on(base, tmp_path / "whole", **options)
    arguments: dict[str, Any] = {"input_ids": tiny_tokens(4, 16), "work": small_disk / "work", **options}
    with pytest.raises(OSError, match=rf"No space left on device: '{small_disk}/work/.*safetensors'") as caught:
        dass.prune_checkpoint(base, tmp_path / "pruned", **arguments)
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "pruned").exists()
    finished = masks(small_disk)
    assert 0 < len(finished) < LAYERS
    assert finished.items() <= masks(tmp_path / "whole").items()
    enlarge(small_disk)
    assert dass.prune_checkpoint(base, tmp_path / "pruned", **arguments).resumed == len(finished)
    assert digests(tmp_path / "pruned") == digests(tmp_path / "whole" / "pruned")


@pytest.mark.faults("the disk is full")
def test_a_disk_too_small_for_the_checkpoint_keeps_every_layer(base: Path, small_disk: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"input_ids": tiny_tokens(4, 16), "work": tmp_path / "work"}
    with pytest.raises(OSError, match=rf"No space left on device: '{small_disk}/pruned'"):
        dass.prune_checkpoint(base, small_disk / "pruned", **arguments)
    assert os.listdir(small_disk) == []
    enlarge(small_disk)
    assert dass.prune_checkpoint(base, small_disk / "pruned", **arguments).resumed == LAYERS


PLANS: list[dict[str, Any]] = [
    {},
    {"pattern": "2:4", "alpha": 1.0},
    {"pattern": "4:8", "method": "wanda"},
    {"method": "magnitude", "sparsity": 0.7},
    {"method": "sparsegpt", "pattern": "2:4"},
    {"pattern": "2:4", "layout": "transposable", "update": "reconstruct"},
    {"allocation": "owl", "method": "wanda", "sparsity": 0.6},
]


def all_masks(base: Path, folder: Path, statistics: Path, **options: Any) -> dict[str, str]:
    """Masks from statistics in a folder, which are collected when they are not there."""
    decoder = StreamedDecoder(base, torch.device("cpu"))
    what = plan(propagation="dense", **options)
    run = CheckpointRun(decoder, tiny_tokens(4, 16), what, folder, statistics=statistics, buffering=Buffering())
    for index in range(run.layer_count):
        run.layer(index)
    run.close()
    return {path.name: MaskFile(path).digest for path in sorted(folder.glob("layer_*"))}


def test_one_folder_of_statistics_makes_masks_of_every_kind_without_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_tiny_checkpoint(tmp_path / "base")
    expected = [
        all_masks(base, tmp_path / f"own{number}", tmp_path / f"statistics{number}", **options)
        for number, options in enumerate(PLANS)
    ]
    statistics = tmp_path / "statistics"
    all_masks(base, tmp_path / "first", statistics, method="sparsegpt")
    times = {path: path.stat().st_mtime_ns for path in statistics.iterdir()}
    monkeypatch.setattr(StreamedDecoder, "embed", never)
    for number, options in enumerate(PLANS):
        assert all_masks(base, tmp_path / f"shared{number}", statistics, **options) == expected[number]
    assert len({str(found) for found in expected}) == len(PLANS)
    assert times == {path: path.stat().st_mtime_ns for path in statistics.iterdir()}


@pytest.mark.parametrize("propagation", ["pruned", "dense"])
def test_what_sensitivity_measured_is_kept_for_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, propagation: str
) -> None:
    base = save_tiny_checkpoint(tmp_path / "base")
    what = plan(allocation="sensitivity", propagation=propagation, auto_windows=1)

    def run(folder: str, layers: int) -> list[str]:
        opened = CheckpointRun(StreamedDecoder(base, torch.device("cpu")), tiny_tokens(4, 16), what, tmp_path / folder)
        for index in range(layers):
            opened.layer(index)
        opened.close()
        return [MaskFile(path).digest for path in sorted((tmp_path / folder).glob("layer_*"))]

    whole = run("whole", 3)
    assert len(run("killed", 1)) == 1
    monkeypatch.setattr("dass.engine.run.sensitivities", never)
    assert run("killed", 3) == whole

    model = load_model(base)
    report = dass.prune(model, tiny_tokens(4, 16), allocation="sensitivity", propagation=propagation, auto_windows=1)
    shares = [[layer.sparsity for layer in report.layers]]
    kept = [read_report(tmp_path / "whole" / f"layer_{index:03d}.safetensors").sparsity for index in range(3)]
    assert shares == [kept]
