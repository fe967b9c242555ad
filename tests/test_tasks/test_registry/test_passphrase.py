"""The passphrase of a signing key: where it is taken from, and what is said where it is missing or wrong."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from dass.errors import InputError
from tasks.registry.key_file import dsse_signer, fingerprint, key_name, public_key
from tests.test_tasks.test_registry.test_key_file import pem_of, public_pem_of, write_key

ENCRYPTED_BY_OPENSSL = {
    "pkcs8": ["openssl", "pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", "pass:open sesame"],
    "scrypt": ["openssl", "pkcs8", "-topk8", "-scrypt", "-passout", "pass:open sesame"],
    "traditional": ["openssl", "ec", "-aes256", "-passout", "pass:open sesame"],
}


@pytest.fixture(params=ENCRYPTED_BY_OPENSSL)
def encrypted(request: pytest.FixtureRequest, key: Path) -> str:
    """A key that the openssl command encrypted with "open sesame"; gives its fingerprint."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    plain = ec.generate_private_key(ec.SECP384R1())
    command = ENCRYPTED_BY_OPENSSL[request.param]
    write_key(key, subprocess.run(command, input=pem_of(plain), capture_output=True, check=True).stdout)
    return fingerprint(public_pem_of(plain))


def test_a_passphrase_is_taken_from_the_environment_or_a_file(
    key: Path, encrypted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("DASS_SIGNING_KEY_PASSPHRASE", "open sesame")
        assert dsse_signer().public_key.keyid == encrypted
    for content in ("open sesame", "open sesame\n", "open sesame\r\nanother line\n"):
        (tmp_path / "passphrase").write_text(content, encoding="utf-8", newline="")
        with monkeypatch.context() as patch:
            patch.setenv("DASS_SIGNING_KEY_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
            patch.setenv("DASS_SIGNING_KEY_PASSPHRASE", "")
            assert dsse_signer().public_key.keyid == encrypted


def test_a_missing_passphrase_is_refused_by_both_names(key: Path, encrypted: str) -> None:
    told = "has a passphrase. Set DASS_SIGNING_KEY_PASSPHRASE to it, or DASS_SIGNING_KEY_PASSPHRASE_FILE to a file"
    with pytest.raises(InputError, match=told):
        public_key()


def test_a_wrong_passphrase_is_refused_by_both_names_and_not_shown(
    key: Path, encrypted: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DASS_SIGNING_KEY_PASSPHRASE", "open barley")
    told = "another passphrase than the one of DASS_SIGNING_KEY_PASSPHRASE or DASS_SIGNING_KEY_PASSPHRASE_FILE"
    with pytest.raises(InputError, match=told) as refused:
        public_key()
    assert "barley" not in str(refused.value) + caplog.text


def test_a_key_made_with_a_passphrase_needs_it(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("DASS_SIGNING_KEY_PASSPHRASE", "open sesame")
        made = public_key()
        assert public_key() == made
        assert key_name()
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in key.read_bytes()
    with pytest.raises(InputError, match="has a passphrase"):
        public_key()


@pytest.mark.parametrize(
    ("text", "content", "told"),
    [
        ("x", "x", "DASS_SIGNING_KEY_PASSPHRASE and DASS_SIGNING_KEY_PASSPHRASE_FILE are both set"),
        (None, "", "holds a passphrase of 0 bytes: expected 1 to 1023"),
        (None, "\n", "holds a passphrase of 0 bytes: expected 1 to 1023"),
        ("x" * 1024, None, "DASS_SIGNING_KEY_PASSPHRASE holds a passphrase of 1024 bytes"),
        ("x", None, "mine.pem has no passphrase, but DASS_SIGNING_KEY_PASSPHRASE or .* gives one"),
    ],
)
def test_a_passphrase_that_means_nothing_is_refused(
    key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, content: str | None, told: str
) -> None:
    write_key(key, pem_of(ec.generate_private_key(ec.SECP256R1())))
    if text is not None:
        monkeypatch.setenv("DASS_SIGNING_KEY_PASSPHRASE", text)
    if content is not None:
        (tmp_path / "passphrase").write_text(content, encoding="utf-8")
        monkeypatch.setenv("DASS_SIGNING_KEY_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    with pytest.raises(InputError, match=told):
        public_key()


@pytest.mark.parametrize("kind", ["none", "folder", "pipe"])
def test_a_passphrase_file_that_is_none_is_refused(
    key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "passphrase"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    monkeypatch.setenv("DASS_SIGNING_KEY_PASSPHRASE_FILE", str(path))
    with pytest.raises(InputError, match="passphrase is no file: expected the passphrase that DASS_SIGNING_KEY_PASS"):
        public_key()
    assert not key.exists()
