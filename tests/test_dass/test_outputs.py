"""Where `prune_checkpoint` may write, and that nothing it did not make is ever removed."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dass
from dass.engine.run import CheckpointRun
from dass.errors import InputError
from dass.files import files_in, sha256_file
from dass.outputs import check_place, lies_in
from tests.models import tiny_tokens


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused is refused before any layer is pruned."""

    def layer(*_: object) -> None:
        raise AssertionError("a layer was pruned")

    monkeypatch.setattr(CheckpointRun, "layer", layer)


def prune(model: Path, out: Path | str, **options: Any) -> None:
    dass.prune_checkpoint(model, out, tiny_tokens(), **options)


def state(folder: Path) -> dict[str, str]:
    return {name: sha256_file(path) for name, path in files_in(folder).items() if path.is_file()}


def refused(told: str, model: Path, out: Path | str, **options: Any) -> None:
    """Nothing anywhere below the test's folder has changed afterwards, whether overwriting is allowed or not."""
    before = state(model.parent)
    for overwrite in (False, True):
        with pytest.raises(InputError, match=told) as error:
            prune(model, out, overwrite=overwrite, **options)
        assert "\n" not in str(error.value)
    assert state(model.parent) == before
    assert not [name for name in os.listdir(model.parent) if name.startswith(".")]


PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "the input": (lambda model: model, "is the input"),
    "the input, spelled otherwise": (lambda model: model.parent / "x" / ".." / "model" / ".", "is the input"),
    "the input's parent": (lambda model: model.parent, "holds the input"),
    "inside the input": (lambda model: model / "pruned", "lies inside the input"),
    "deep inside the input": (lambda model: model / "a" / "b", "lies inside the input"),
    "a folder with a note": (lambda model: model.parent / "notes", "dass did not make it"),
    "another model": (lambda model: model.parent / "other", "dass did not make it"),
    "a file": (lambda model: model.parent / "file", "is no folder"),
    "below a file": (lambda model: model.parent / "file" / "pruned", "cannot be written"),
    "a link to the input": (lambda model: model.parent / "link", "is the input"),
    "through a link into the input": (lambda model: model.parent / "link" / "pruned", "lies inside the input"),
    "a link to a folder with a note": (lambda model: model.parent / "link-to-notes", "dass did not make it"),
    "a link that leads in a circle": (lambda model: model.parent / "circle", "is no folder"),
    "a mount point": (lambda _: Path("/dev/shm"), "is a mount point"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.usefixtures("idle")
def test_a_place_where_something_would_be_lost_is_refused(place: str, tiny_checkpoint: Path) -> None:
    root = tiny_checkpoint.parent
    shutil.copytree(tiny_checkpoint, root / "other")
    (root / "notes").mkdir()
    (root / "notes" / "note.txt").write_text("mine")
    (root / "file").write_text("mine")
    (root / "link").symlink_to("model")
    (root / "link-to-notes").symlink_to("notes")
    (root / "circle").symlink_to("circle")
    out, told = PLACES[place]
    refused(told, tiny_checkpoint, out(tiny_checkpoint))


@pytest.mark.usefixtures("idle")
def test_relative_paths_are_compared_with_absolute_ones(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_checkpoint)
    refused("is the input", tiny_checkpoint, ".")
    refused("holds the input", tiny_checkpoint, "..")
    refused("is the input", tiny_checkpoint, "../model")


@pytest.mark.parametrize(
    ("work", "told"),
    [
        ("out", r"work is .*, in the output"),
        ("out/work", r"work is .*, in the output"),
        ("model", r"work is .*, in the input"),
        ("model/work", r"work is .*, in the input"),
        ("file", "is no folder"),
    ],
)
@pytest.mark.usefixtures("idle")
def test_a_work_folder_that_would_be_lost_or_is_in_the_way_is_refused(
    work: str, told: str, tiny_checkpoint: Path
) -> None:
    (tiny_checkpoint.parent / "file").write_text("mine")
    refused(told, tiny_checkpoint, tiny_checkpoint.parent / "out", work=tiny_checkpoint.parent / work)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder nobody can write in, not even root."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o ro,size=4k tmpfs '{folder}' 2>/dev/null"):
        pytest.skip("mounting needs root")
    yield folder
    os.system(f"umount '{folder}'")


@pytest.mark.usefixtures("idle")
def test_a_place_that_cannot_be_written_is_refused_before_any_work(tiny_checkpoint: Path, read_only: Path) -> None:
    refused(r"read-only cannot be written \(Read-only file system\)", tiny_checkpoint, read_only / "pruned")
    refused("read-only cannot be written", tiny_checkpoint, tiny_checkpoint.parent / "out", work=read_only / "w")


def test_an_earlier_output_is_replaced_and_an_empty_folder_is_filled(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    prune(tiny_checkpoint, out)
    before = state(out)
    prune(tiny_checkpoint, out, sparsity=0.25)
    assert state(out).keys() == before.keys()
    assert state(out)["model.safetensors"] != before["model.safetensors"]


def test_a_link_to_a_folder_is_followed_and_stays_a_link(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "large-disk").mkdir()
    (tmp_path / "out").symlink_to("large-disk")
    for _ in range(2):
        prune(tiny_checkpoint, tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "large-disk" / "dass.json").is_file()
    assert sorted(os.listdir(tmp_path)) == ["large-disk", "model", "out"]


def test_a_file_of_the_users_in_an_earlier_output_is_never_removed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prune(tiny_checkpoint, out)
    (out / "note.txt").write_text("mine")
    refused(r"out holds note\.txt, which dass did not make", tiny_checkpoint, out)
    (out / "note.txt").unlink()
    (out / "link").symlink_to("/nowhere")
    refused("out holds link, which dass did not make", tiny_checkpoint, out)
    (out / "link").unlink()
    (out / "runs").mkdir()
    refused("out holds runs/, which dass did not make", tiny_checkpoint, out)


def test_a_changed_file_is_replaced_only_when_that_is_said(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prune(tiny_checkpoint, out)
    whole = state(out)
    (out / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"out/config\.json was changed since .* or say overwrite=True"):
        prune(tiny_checkpoint, out)
    assert (out / "config.json").read_text() == "{}"
    prune(tiny_checkpoint, out, overwrite=True)
    assert state(out) == whole


def test_what_is_put_there_during_the_work_is_not_removed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prune(tiny_checkpoint, out)

    def put(_: object) -> None:
        (out / "note.txt").write_text("mine")

    with pytest.raises(InputError, match=r"holds note\.txt"):
        prune(tiny_checkpoint, out, on_layer=put)
    assert (out / "note.txt").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["model", "out"]


def test_one_folder_is_in_another_however_it_is_spelled(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    assert lies_in(tmp_path / "link" / "absent", tmp_path / "a")
    assert lies_in(tmp_path / "a", tmp_path / "link")
    assert not lies_in(tmp_path / "ab", tmp_path / "a")
    assert not lies_in(tmp_path / "a", tmp_path / "a" / "b")
    check_place(tmp_path / "ab", {"the input": tmp_path / "a"})
