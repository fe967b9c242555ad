"""Files and folders that are complete or absent."""

import errno
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dass.files import (
    canonical_json,
    clear_leftovers,
    complete_file,
    complete_folder,
    digest_of,
    read_json,
    scratch_folder,
    sha256_file,
    write_json,
)


def test_a_file_appears_only_when_the_block_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    with complete_file(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert os.listdir(target.parent) == ["file.txt"]


def test_a_failed_file_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), complete_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_text("old")
    with pytest.raises(RuntimeError), complete_folder(target) as temporary:
        (temporary / "a").write_text("half")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_a_replaced_folder_never_writes_through_hard_links(tmp_path: Path) -> None:
    kept, target = tmp_path / "cached", tmp_path / "out"
    kept.write_text("cached")
    target.mkdir()
    os.link(kept, target / "a")
    with complete_folder(target) as temporary:
        (temporary / "a").write_text("new")
    assert kept.read_text() == "cached"
    assert (target / "a").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["cached", "out"]


def test_a_folder_left_by_a_killed_run_is_not_built_upon(tmp_path: Path) -> None:
    left = tmp_path / f".out.{os.getpid()}.partial"
    left.mkdir()
    (left / "stale").touch()
    with complete_folder(tmp_path / "out") as temporary:
        assert os.listdir(temporary) == []


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_was_writing_is_removed_when_its_target_is_written_again(
    tmp_path: Path, gone: int
) -> None:
    (tmp_path / f".out.{gone}.partial").mkdir()
    (tmp_path / f".out.{gone}.partial" / "half").touch()
    (tmp_path / f".out.8hex8hex.{gone}.partial").mkdir()
    (tmp_path / f".x.json.{gone}.partial").touch()
    (tmp_path / f".other.{gone}.partial").touch()
    (tmp_path / f".out.{os.getppid()}.partial").touch()  # of a process that lives
    (tmp_path / ".out.notes.partial").touch()  # somebody's own
    with complete_folder(tmp_path / "out"), complete_file(tmp_path / "x.json") as file:
        file.touch()
    left = {f".other.{gone}.partial", f".out.{os.getppid()}.partial", ".out.notes.partial"}
    assert set(os.listdir(tmp_path)) == {"out", "x.json", *left}


def test_a_folder_that_was_moved_aside_by_a_killed_process_is_put_back(tmp_path: Path, gone: int) -> None:
    retired = tmp_path / f".out.{gone}.retired"
    retired.mkdir()
    (retired / "a").write_text("old")
    (tmp_path / f".out.{gone}.partial").mkdir()
    clear_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "old"
    retired.mkdir()
    clear_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_a_scratch_folder_goes_with_its_block_and_after_a_kill_with_the_next_one(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from dass.files import scratch_folder\n"
        "with scratch_folder(pathlib.Path(sys.argv[1]), 'base') as folder:\n"
        "    (folder / 'weights').touch(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2])
    assert len(list(tmp_path.rglob("weights"))) == 1
    with scratch_folder(tmp_path, "base") as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_equal_values_have_one_digest_whatever_the_order() -> None:
    assert digest_of({"a": 1, "b": [1.5, None]}) == digest_of({"b": [1.5, None], "a": 1})
    assert canonical_json({"b": "ü", "a": 1}) == '{"a":1,"b":"ü"}'


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"x": math.nan})
    assert os.listdir(tmp_path) == []


def test_json_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"x": [1, "ü", None]})
    assert read_json(tmp_path / "x.json") == {"x": [1, "ü", None]}


def test_a_file_s_digest_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_full_disk_is_told_with_the_file_s_name(tmp_path: Path) -> None:
    def no_room() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as file.write does: it names nothing

    with pytest.raises(OSError, match=r"No space left on device: '.*/file\.bin'"), complete_file(tmp_path / "file.bin"):
        no_room()
    with pytest.raises(OSError, match=r"No space left on device: '.*/out'"), complete_folder(tmp_path / "out"):
        no_room()
    assert os.listdir(tmp_path) == []


def test_safetensors_hides_a_system_error_in_text_and_it_is_one_again(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"a/file\.safetensors") as caught, complete_file(tmp_path / "a/file.safetensors"):
        save_file({"x": torch.zeros(1)}, tmp_path / "nowhere" / "file.safetensors")
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(SafetensorError, match="serializ"), complete_file(tmp_path / "b"):
        raise SafetensorError("Error while serializing: odd")
