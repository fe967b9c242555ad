"""Signing a folder, and every way in which it may not be what was signed."""

import base64
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sigstore_models.bundle.v1 import Bundle

from tasks.registry.key_file import fingerprint, public_key
from tasks.registry.signing import SIGNATURE, SignatureError, check, missing_files, sign


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a few files, signed."""
    made = tmp_path / "version"
    (made / "dass").mkdir(parents=True)
    (made / "README.md").write_text("card", encoding="utf-8")
    (made / "dass" / "manifest.json").write_text("{}", encoding="utf-8")
    (made / ".gitignore").write_text("*", encoding="utf-8")
    (made / "weights.safetensors").write_bytes(bytes(range(256)))
    sign(made)
    return made


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for a key that no other test knows."""
    path = tmp_path / "keys" / "mine.pem"
    monkeypatch.setenv("DASS_SIGNING_KEY", str(path))
    return path


def every_file(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def test_a_signed_folder_holds(folder: Path) -> None:
    check(folder, public_key())
    assert sign(folder) == fingerprint(public_key())  # again, over the old signature
    check(folder, public_key())


def test_the_folder_may_be_elsewhere(folder: Path, tmp_path: Path) -> None:
    check(folder.rename(tmp_path / "somewhere else"), public_key())


def test_a_flipped_bit_anywhere_is_caught_and_its_file_named(folder: Path) -> None:
    files, draw = every_file(folder), random.Random(0)
    assert folder / SIGNATURE in files
    for file in files:
        before = file.read_bytes()
        for place in range(len(before)) if len(before) < 40 else draw.sample(range(len(before)), 40):
            changed = bytearray(before)
            changed[place] ^= 1 << draw.randrange(8)
            file.write_bytes(changed)
            with pytest.raises(SignatureError, match=file.name) as told:
                check(folder, public_key())
            assert "\n" not in str(told.value)
        file.write_bytes(before)
    check(folder, public_key())


def test_the_bytes_of_the_signature_count(folder: Path) -> None:
    file = folder / SIGNATURE
    before = file.read_bytes()
    for place in range(0, len(before), 3):
        changed = bytearray(before)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        with pytest.raises(SignatureError, match=r"model\.sig"):
            check(folder, public_key())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: (folder / "README.md").unlink(), "README.md is missing"),
        (lambda folder: (folder / "more.txt").write_text("x"), "more.txt in .* is extra"),
        (lambda folder: (folder / ".gitattributes").write_text("x"), ".gitattributes in .* is extra"),
        (lambda folder: (folder / "README.md").write_text("edited"), "README.md in .* differs"),
        (lambda folder: (folder / SIGNATURE).unlink(), "model.sig is missing: the folder is not signed"),
        (lambda folder: (folder / SIGNATURE).write_text("{}"), "model.sig is damaged"),
        (lambda folder: replace_by_pipe(folder / SIGNATURE), "model.sig is missing"),
        (lambda folder: replace_by_pipe(folder / "README.md"), "README.md in .* differs"),
        (lambda folder: (folder / "link").symlink_to("/etc/passwd"), "link in .* is a symlink to /etc/passwd"),
        (lambda folder: (folder / "pytorch_model.bin").write_text("x"), "pytorch_model.bin in .* is a pickle"),
        (lambda folder: (folder / "registered_model_meta").mkdir(), None),
    ],
)
def test_what_changed_is_named(folder: Path, change: Callable[[Path], object], told: str | None) -> None:
    change(folder)
    if told is None:
        (folder / "registered_model_meta" / "hidden").write_text("x")
        told = "registered_model_meta/hidden in .* was never signed"
    with pytest.raises(SignatureError, match=told):
        check(folder, public_key())


def test_a_file_that_was_never_signed_is_refused_unread(folder: Path) -> None:
    with (folder / "dass" / "huge.safetensors").open("wb") as sparse:
        sparse.truncate(20 << 30)  # to hash it takes half a minute
    began = time.monotonic()
    with pytest.raises(SignatureError, match=r"dass/huge.safetensors in .* is extra"):
        check(folder, public_key())
    assert time.monotonic() - began < 5


def test_a_signature_has_a_largest_size(folder: Path) -> None:
    os.truncate(folder / SIGNATURE, 20 << 30)
    for look in (lambda: check(folder, public_key()), lambda: missing_files(folder)):
        with pytest.raises(SignatureError, match=r"model\.sig has 21474836480 bytes: .* at most 16777216"):
            look()


def test_a_signature_that_is_nested_without_end_is_damaged(folder: Path) -> None:
    bundle = json.loads((folder / SIGNATURE).read_text())
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(b"[" * 100_000).decode()
    for content in ("[" * 100_000, Bundle.from_json(json.dumps(bundle)).to_json()):
        (folder / SIGNATURE).write_text(content)
        with pytest.raises(SignatureError, match=r"model\.sig is damaged"):
            check(folder, public_key())


def test_two_swapped_files_are_caught(folder: Path) -> None:
    one, other = folder / "README.md", folder / ".gitignore"
    one.rename(folder / "held")
    other.rename(one)
    (folder / "held").rename(other)
    with pytest.raises(SignatureError, match=".gitignore in .* differs"):
        check(folder, public_key())


def test_what_mlflow_leaves_behind_is_no_difference(folder: Path) -> None:
    (folder / "registered_model_meta").write_text("model_name: tiny\n", encoding="utf-8")
    check(folder, public_key())


def test_another_key_is_told(folder: Path, key: Path) -> None:
    with pytest.raises(SignatureError, match=f"made with another key than {fingerprint(public_key())}"):
        check(folder, public_key())


def test_a_folder_signed_anew_with_another_key_is_told(
    folder: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delenv("DASS_SIGNING_KEY")
        patch.setenv("XDG_CONFIG_HOME", str(key.parent))
        ours = public_key()
        sign(folder)
        check(folder, ours)
    sign(folder)
    with pytest.raises(SignatureError, match="another key"):
        check(folder, ours)


@pytest.mark.parametrize("name", ["weights.bin", "a.PT", "dass/b.pkl"])
def test_pickles_are_not_signed(folder: Path, name: str) -> None:
    (folder / name).write_text("x", encoding="utf-8")
    with pytest.raises(SignatureError, match=f"{name} in .* is a pickle"):
        sign(folder)


def test_links_are_not_signed(folder: Path) -> None:
    (folder / "inside").symlink_to("README.md")
    with pytest.raises(SignatureError, match="inside in .* is a symlink to README.md"):
        sign(folder)
