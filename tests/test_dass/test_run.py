"""A run on disk: killed at any moment it goes on to the bytes of an undisturbed one."""

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dass
import dass.run
from dass.engine import Buffering, LayerwisePruner
from dass.errors import InputError
from dass.files import sha256_file
from dass.masks import MaskFile, save_masks
from dass.plan import plan
from dass.run import CheckpointRun
from dass.streaming import StreamedDecoder
from dass.updates import Updates
from tests.forked import Forked, Request
from tests.models import tiny_model, tiny_tokens

LAYERS = 8
SIGKILL = -9
GPT: dict[str, Any] = {"method": "sparsegpt", "pattern": "2:4", "update": "reconstruct"}
CASES: dict[str, tuple[int, dict[str, Any]]] = {  # kills and options
    "replayed": (10, {}),
    "from saved hidden states": (10, {"checkpoint_every": 2, **GPT}),
    "on disk": (4, {"hidden_states": "disk", "checkpoint_every": 3, "allocation": "owl"}),
    "dense": (4, {"propagation": "dense"}),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 8 layers in several shards."""
    folder = tmp_path_factory.mktemp("base")
    tiny_model(num_hidden_layers=LAYERS).save_pretrained(folder, max_shard_size="100KB")
    return folder


@pytest.fixture(scope="module")
def forked() -> Iterator[Forked]:
    with Forked() as server:
        yield server


def run_folder(work: Path) -> Path:
    [folder] = work.iterdir()
    return folder


def digests(work: Path, out: Path) -> dict[str, str]:
    """Of masks, norms, new values and the checkpoint."""
    folder = run_folder(work)
    masks = [folder / f"layer_{index:03d}.safetensors" for index in range(LAYERS)]
    found = {path.name: MaskFile(path).digest for path in masks}
    found |= {path.name: Updates([path]).digest for path in sorted(folder.glob("updates_*"))}
    found |= {path.name: sha256_file(path) for path in sorted(folder.glob("norms_*"))}
    return found | {path.name: sha256_file(path) for path in sorted(out.iterdir())}


def finished(work: Path) -> int:
    """How many layers a run's folder holds."""
    return len(list(work.glob("*/layer_*.safetensors")))


def open_run(base: Path, folder: Path, tokens: Tensor | None = None, **options: Any) -> CheckpointRun:
    more = {key: options.pop(key) for key in ("statistics", "checkpoint_every") if key in options}
    decoder = StreamedDecoder(base, torch.device("cpu"))
    ids = tiny_tokens() if tokens is None else tokens
    return CheckpointRun(decoder, ids, plan(**options), folder, buffering=Buffering(folder=folder), **more)


# --- killed


@pytest.mark.parametrize(("kills", "options"), CASES.values(), ids=CASES)
def test_a_run_killed_at_any_moment_ends_in_the_bytes_of_an_undisturbed_one(
    kills: int, options: dict[str, Any], base: Path, forked: Forked, tmp_path: Path
) -> None:
    def request(name: str, **more: Any) -> Request:
        folder = tmp_path / name
        return Request(str(base), str(folder / "out"), str(folder / "work"), options=options, pause=0.02, **more)

    whole = min((forked.run(request(name)) for name in ("first", "undisturbed")), key=lambda ended: ended.seconds)
    assert whole.status == 0
    expected = digests(tmp_path / "undisturbed/work", tmp_path / "undisturbed/out")
    moments = random.Random(0)
    layers_left = set()
    for kill in range(kills):
        name, delay = f"kill{kill}", whole.seconds * (kill + moments.random()) / kills
        while (status := forked.run(request(name, kill_after=delay)).status) != SIGKILL:
            assert status == 0, "it failed by itself"  # it was quicker than the one that was measured: once more
            shutil.rmtree(tmp_path / name)
            delay *= 0.8
        layers_left.add(finished(tmp_path / name / "work"))
        assert forked.run(request(name)).status == 0
        assert digests(tmp_path / name / "work", tmp_path / name / "out") == expected, f"killed after {delay:.3f} s"
        shutil.rmtree(tmp_path / name)
    assert len(layers_left) > kills // 3, layers_left  # the kills landed all over the run


def test_a_resumed_run_says_how_many_layers_were_finished(
    base: Path, forked: Forked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = stop_behind(base, tmp_path, 5)
    report = dass.prune_checkpoint(base, tmp_path / "out", tiny_tokens(), work=tmp_path / "work")
    assert (report.resumed, len(report.layers)) == (5, LAYERS)
    assert [layer.relative_error for layer in report.layers[:5]] == stopped
    again = dass.prune_checkpoint(base, tmp_path / "out", tiny_tokens(), work=tmp_path / "work")
    assert again.resumed == LAYERS
    monkeypatch.setattr(StreamedDecoder, "embed", never)
    dass.prune_checkpoint(base, tmp_path / "out", tiny_tokens(), work=tmp_path / "work")  # nothing is left to compute


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("called")


def stop_behind(base: Path, folder: Path, layers: int, **options: Any) -> list[float | None]:
    """Start a run and let it die behind some layers."""
    errors: list[float | None] = []

    class Stop(Exception):
        pass

    def on_layer(report: Any) -> None:
        errors.append(report.relative_error)
        if len(errors) == layers:
            raise Stop

    with pytest.raises(Stop):
        dass.prune_checkpoint(base, folder / "out", tiny_tokens(), work=folder / "work", on_layer=on_layer, **options)
    return errors


@pytest.mark.parametrize(("stopped", "replayed"), [(1, [0]), (2, []), (5, [4]), (6, [])])
def test_saved_hidden_states_spare_the_replay_of_layers_before_them(
    stopped: int, replayed: list[int], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_behind(base, tmp_path, stopped, checkpoint_every=2)
    seen: list[int] = []
    original = LayerwisePruner.replay_layer

    def noted(self: LayerwisePruner, index: int, *rest: Any) -> None:
        seen.append(index)
        original(self, index, *rest)

    monkeypatch.setattr(LayerwisePruner, "replay_layer", noted)
    dass.prune_checkpoint(base, tmp_path / "out", tiny_tokens(), work=tmp_path / "work", checkpoint_every=2)
    assert seen == replayed
    assert not list((tmp_path / "work").glob("*/hidden_*")), "of no use behind the last layer"


def test_what_a_killed_write_left_is_never_taken_for_a_layer(base: Path, tmp_path: Path) -> None:
    stop_behind(base, tmp_path, 3, checkpoint_every=2, **GPT)
    folder = run_folder(tmp_path / "work")
    whole = (folder / "layer_002.safetensors").read_bytes()
    for name in (".layer_003.safetensors.123.partial", ".layer_004.safetensors.123.partial"):
        (folder / name).write_bytes(whole[: len(whole) // 2])
    (folder / ".hidden_003_of_1_0.safetensors.123.partial").write_bytes(b"half")
    (folder / "updates_003.safetensors").write_bytes(b"complete or not: its layer is not finished")
    report = dass.prune_checkpoint(base, tmp_path / "out", tiny_tokens(), work=tmp_path / "work", **GPT)
    assert report.resumed == 3
    undisturbed = tmp_path / "undisturbed"
    dass.prune_checkpoint(base, undisturbed / "out", tiny_tokens(), work=undisturbed / "work", **GPT)
    expected, actual = (digests(each / "work", each / "out") for each in (undisturbed, tmp_path))
    assert expected == actual


def test_a_finished_layer_that_was_damaged_later_is_named(base: Path, tmp_path: Path) -> None:
    stop_behind(base, tmp_path, 3)
    path = run_folder(tmp_path / "work") / "layer_001.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"layer_001\.safetensors is damaged"):
        dass.prune_checkpoint(base, tmp_path / "out", tiny_tokens(), work=tmp_path / "work")
    assert not (tmp_path / "out").exists()


# --- another run


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "wanda"},
        {"sparsity": 0.6},
        {"pattern": "2:4"},
        {"alpha": 1.0},
        {"layout": "contraction", "pattern": "2:4"},
        {"update": "reconstruct"},
        {"allocation": "owl"},
        {"propagation": "dense"},
        {"damping": 0.5},
        {"min_expert_tokens": 7},
        {"batch_tokens": 16},
        {"dtype": torch.bfloat16},
        {"input_ids": tiny_tokens(seed=1)},
        {"input_ids": tiny_tokens().reshape(2, 32)},
    ],
    ids=lambda changed: " ".join(changed),
)
def test_a_changed_setting_never_continues_an_old_run(changed: dict[str, Any], base: Path, tmp_path: Path) -> None:
    stop_behind(base, tmp_path, 2)
    arguments = {"input_ids": tiny_tokens(), **changed}
    report = dass.prune_checkpoint(base, tmp_path / "out", work=tmp_path / "work", **arguments)
    assert report.resumed == 0
    assert len(list((tmp_path / "work").iterdir())) == 2


def test_changed_weights_or_another_engine_never_continue_an_old_run(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_behind(base, tmp_path, 2)
    other = tmp_path / "other"
    tiny_model(seed=1, num_hidden_layers=LAYERS).save_pretrained(other, max_shard_size="100KB")
    assert dass.prune_checkpoint(other, tmp_path / "out", tiny_tokens(), work=tmp_path / "work").resumed == 0
    monkeypatch.setattr("dass.api.ENGINE_VERSION", "another")
    assert dass.prune_checkpoint(base, tmp_path / "out", tiny_tokens(), work=tmp_path / "work").resumed == 0


@pytest.mark.parametrize("changed", [{"checkpoint_every": 2}, {"hidden_states": "disk"}, {"out": "elsewhere"}])
def test_what_changes_no_bit_continues_it(changed: dict[str, Any], base: Path, tmp_path: Path) -> None:
    stop_behind(base, tmp_path, 2)
    out = tmp_path / changed.pop("out", "out")
    assert dass.prune_checkpoint(base, out, tiny_tokens(), work=tmp_path / "work", **changed).resumed == 2


# --- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], object]]]:
    """A disk of 32 KiB, and how to make it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield disk, lambda: subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("options", [{}, {"checkpoint_every": 2, **GPT}], ids=["masks", "hidden states and values"])
def test_a_full_disk_stops_the_run_and_it_goes_on_when_there_is_room(
    options: dict[str, Any], base: Path, small_disk: tuple[Path, Callable[[], object]], tmp_path: Path
) -> None:
    disk, enlarge = small_disk
    undisturbed = tmp_path / "undisturbed"
    dass.prune_checkpoint(base, undisturbed / "out", tiny_tokens(), work=undisturbed / "work", **options)
    with pytest.raises(OSError, match=rf"No space left on device: '{disk}/work/.*safetensors'") as caught:
        dass.prune_checkpoint(base, tmp_path / "out", tiny_tokens(), work=disk / "work", **options)
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "out").exists()
    done = finished(disk / "work")
    assert 0 < done < LAYERS
    enlarge()
    report = dass.prune_checkpoint(base, tmp_path / "out", tiny_tokens(), work=disk / "work", **options)
    assert report.resumed == done
    expected = digests(undisturbed / "work", undisturbed / "out")
    assert digests(disk / "work", tmp_path / "out") == expected


def test_a_disk_too_small_for_the_checkpoint_keeps_every_layer(
    base: Path, small_disk: tuple[Path, Callable[[], object]], tmp_path: Path
) -> None:
    disk, enlarge = small_disk
    with pytest.raises(OSError, match=rf"No space left on device: '{disk}/out'"):
        dass.prune_checkpoint(base, disk / "out", tiny_tokens(), work=tmp_path / "work")
    assert os.listdir(disk) == []
    assert finished(tmp_path / "work") == LAYERS
    enlarge()
    assert dass.prune_checkpoint(base, disk / "out", tiny_tokens(), work=tmp_path / "work").resumed == LAYERS


def test_a_write_that_fails_leaves_the_layers_before_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where no disk can be mounted: the fourth layer's masks find no room."""
    calls: list[Path] = []

    def no_room(keep: Any, path: Path, more: Any) -> None:
        calls.append(path)
        if len(calls) == 4:
            path.write_bytes(b"half of the masks")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_masks(keep, path, more)

    monkeypatch.setattr("dass.run.save_masks", no_room)
    with pytest.raises(OSError, match=r"No space left on device: '.*layer_003\.safetensors'"):
        dass.prune_checkpoint(base, tmp_path / "out", tiny_tokens(), work=tmp_path / "work")
    assert finished(tmp_path / "work") == 3
    assert not list((tmp_path / "work").rglob("*partial"))
    assert dass.prune_checkpoint(base, tmp_path / "out", tiny_tokens(), work=tmp_path / "work").resumed == 3


# --- statistics once, many masks

PLANS: list[dict[str, Any]] = [
    {},
    {"pattern": "2:4", "alpha": 1.0},
    {"pattern": "4:8", "method": "wanda"},
    {"method": "magnitude", "sparsity": 0.7},
    {"method": "sparsegpt", "pattern": "2:4"},
    {"pattern": "2:4", "layout": "transposable", "update": "reconstruct"},
    {"allocation": "owl", "method": "wanda", "sparsity": 0.6},
]


def test_one_folder_of_statistics_makes_masks_of_every_kind_without_a_token(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = []
    for number, options in enumerate(PLANS):  # each with its own pass
        run = open_run(base, tmp_path / f"own{number}", propagation="dense", **options)
        expected.append([run.layer(index).report for index in range(LAYERS)])
        run.close()
    statistics = tmp_path / "statistics"
    collecting = open_run(base, tmp_path / "first", statistics=statistics, propagation="dense", method="sparsegpt")
    collecting.layer(0)
    files = {path: path.stat().st_mtime_ns for path in statistics.iterdir()}
    assert len(files) == LAYERS
    monkeypatch.setattr(StreamedDecoder, "embed", never)
    masks = set()
    for number, options in enumerate(PLANS):
        run = open_run(base, tmp_path / f"shared{number}", statistics=statistics, propagation="dense", **options)
        assert [run.layer(index).report for index in range(LAYERS)] == expected[number]
        for index in range(LAYERS):
            one, other = (
                MaskFile(tmp_path / f"{kind}{number}" / f"layer_{index:03d}.safetensors") for kind in ("own", "shared")
            )
            assert one.digest == other.digest
        masks.add(one.digest)
        run.close()
    assert len(masks) == len(PLANS)
    assert files == {path: path.stat().st_mtime_ns for path in statistics.iterdir()}


def test_a_lost_statistics_file_is_collected_again(base: Path, tmp_path: Path) -> None:
    statistics = tmp_path / "statistics"
    open_run(base, tmp_path / "one", statistics=statistics, propagation="dense").layer(0)
    before = {path.name: path.read_bytes() for path in statistics.iterdir()}
    (statistics / "statistics_003.safetensors").unlink()
    open_run(base, tmp_path / "two", statistics=statistics, propagation="dense").layer(0)
    assert {path.name: path.read_bytes() for path in statistics.iterdir()} == before


def test_a_model_the_plan_does_not_fit_leaves_no_folder(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a multiple of M=5"):
        open_run(base, tmp_path / "run", pattern="3:5")
    assert not (tmp_path / "run").exists()
