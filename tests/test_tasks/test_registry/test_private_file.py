"""A signing key is this user's alone: its file, and the folders on the way to it."""

import os
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from dass.errors import InputError
from tasks.registry.key_file import dsse_signer, key_name, public_key
from tests.test_tasks.test_registry.test_key_file import pem_of, write_key


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604, 0o610, 0o700, 0o602])
def test_a_key_that_others_can_reach_is_refused_until_the_command_is_run(key: Path, mode: int) -> None:
    write_key(key, pem_of(ec.generate_private_key(ec.SECP256R1())))
    key.chmod(mode)
    told = f"mine.pem has mode 0{mode:o}: the signing key is for its owner only. Run: (chmod 600 .*mine.pem)$"
    for use in (public_key, dsse_signer, key_name):
        with pytest.raises(InputError, match=told) as refused:
            use()
    assert stat.S_IMODE(key.stat().st_mode) == mode
    subprocess.run(str(refused.value).partition("Run: ")[2], shell=True, check=True)
    assert public_key()


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_for_its_owner_only_is_taken(key: Path, mode: int) -> None:
    write_key(key, pem_of(ec.generate_private_key(ec.SECP256R1())))
    key.chmod(mode)
    assert public_key()


def test_the_command_names_a_path_with_spaces_so_that_a_shell_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "my keys" / "it's mine.pem"
    monkeypatch.setenv("DASS_SIGNING_KEY", str(path))
    write_key(path, pem_of(ec.generate_private_key(ec.SECP256R1())))
    path.chmod(0o644)
    with pytest.raises(InputError, match="Run: chmod 600") as refused:
        public_key()
    subprocess.run(str(refused.value).partition("Run: ")[2], shell=True, check=True)
    assert public_key()


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_write_is_refused_until_the_command_is_run(key: Path, mode: int, made: bool) -> None:
    if made:
        write_key(key, pem_of(ec.generate_private_key(ec.SECP256R1())))
    key.parent.mkdir(exist_ok=True)
    key.parent.chmod(mode)
    with pytest.raises(
        InputError, match=f"keys has mode 0{mode:o}: others could .* Run: chmod go-w .*keys$"
    ) as refused:
        public_key()
    assert os.listdir(key.parent) == [key.name] * made
    subprocess.run(str(refused.value).partition("Run: ")[2], shell=True, check=True)
    assert public_key()


def test_a_link_is_looked_at_where_it_leads(key: Path, tmp_path: Path) -> None:
    held = tmp_path / "held" / "mine.pem"
    write_key(held, pem_of(ec.generate_private_key(ec.SECP256R1())))
    key.parent.mkdir(mode=0o700)
    key.symlink_to(held)
    assert public_key()
    held.parent.chmod(0o777)
    with pytest.raises(InputError, match="held has mode 0777"):
        public_key()
    held.parent.chmod(0o700)
    held.chmod(0o644)
    with pytest.raises(InputError, match="mine.pem has mode 0644"):
        public_key()
    held.unlink()
    with pytest.raises(InputError, match="mine.pem leads nowhere"):
        public_key()


def test_a_folder_like_tmp_is_taken(key: Path) -> None:
    key.parent.mkdir(mode=0o700)
    key.parent.chmod(0o1777)
    assert public_key() == public_key()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_key_or_folder_of_another_user_is_refused(key: Path) -> None:
    write_key(key, pem_of(ec.generate_private_key(ec.SECP256R1())))
    os.chown(key, 65533, -1)
    with pytest.raises(InputError, match="mine.pem belongs to user 65533 and this is root: expected the signing key"):
        public_key()
    os.chown(key, 0, -1)
    os.chown(key.parent, 65533, -1)
    with pytest.raises(InputError, match="keys belongs to user 65533, who could replace the signing key"):
        public_key()


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_no_key(key: Path, kind: str) -> None:
    key.parent.mkdir(mode=0o700)
    if kind == "folder":
        key.mkdir(mode=0o600)
    else:
        os.mkfifo(key, 0o600)
    with pytest.raises(
        InputError, match=r"mine.pem (is no file|cannot be read \(Is a directory\)).*: expected the signing"
    ):
        public_key()
