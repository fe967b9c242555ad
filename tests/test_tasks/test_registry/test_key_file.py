"""The signing key: where it lies, how it is made, and what it signs."""

import logging
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError

from dass.errors import InputError
from tasks.registry import key_file as module
from tasks.registry.key_file import dsse_key, dsse_signer, fingerprint, key_file, key_name, public_key
from tasks.registry.signing import check, sign


def write_key(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o600)


def test_the_key_is_made_on_first_use_for_its_owner_only(key: Path) -> None:
    first = public_key()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert public_key() == first
    assert os.listdir(key.parent) == [key.name]


def test_two_first_uses_end_with_one_key(key: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: public_key(), range(8)))
    assert len(made) == 1
    assert os.listdir(key.parent) == [key.name]


def test_the_key_lies_in_the_users_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASS_SIGNING_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert key_file() == tmp_path / ".config" / "dass" / "signing-key.pem"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert key_file() == tmp_path / "xdg" / "dass" / "signing-key.pem"


def pem_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes | None = None) -> bytes:
    lock: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        lock = serialization.BestAvailableEncryption(password)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)


def public_pem_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    public = key.public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"no key", "is no PEM private key"),
        (b"", "is no PEM private key"),
        (pem_of(ec.generate_private_key(ec.SECP256K1())), "is no key on one of secp256r1"),
        (pem_of(rsa.generate_private_key(65537, 2048)), "is no key on one of secp256r1"),
    ],
)
def test_a_key_that_cannot_sign_is_refused(key: Path, content: bytes, told: str) -> None:
    write_key(key, content)
    with pytest.raises(InputError, match=f"mine.pem {told}"):
        public_key()
    assert key.read_bytes() == content


def test_a_key_of_any_size_is_not_read(key: Path) -> None:
    write_key(key, b"")
    os.truncate(key, 20 << 30)
    with pytest.raises(InputError, match=r"mine\.pem is no file of at most 1048576 bytes"):
        public_key()


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_an_envelope_and_a_folder_are_signed_on_every_curve(tmp_path: Path, key: Path, curve: ec.EllipticCurve) -> None:
    write_key(key, pem_of(ec.generate_private_key(curve)))
    envelope = Envelope(b"{}", "application/vnd.in-toto+json", {})
    envelope.sign(dsse_signer())
    known = fingerprint(public_key())
    assert list(envelope.verify([dsse_key(public_key())], 1)) == [known]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("x", encoding="utf-8")
    assert sign(tmp_path / "folder") == known
    check(tmp_path / "folder", public_key())


@pytest.mark.parametrize("changed", ["payload", "type", "signature"])
def test_a_changed_envelope_is_refused(key: Path, changed: str) -> None:
    envelope = Envelope(b'{"version": "1"}', "application/vnd.in-toto+json", {})
    envelope.sign(dsse_signer())
    envelope = Envelope.from_dict(envelope.to_dict())
    envelope.verify([dsse_key(public_key())], 1)
    if changed == "payload":
        envelope.payload = b'{"version": "2"}'
    elif changed == "type":
        envelope.payload_type = "application/json"
    else:
        (held,) = envelope.signatures.values()
        held.signature = held.signature[:-2] + f"{int(held.signature[-2:], 16) ^ 1:02x}"
    with pytest.raises(VerificationError):
        envelope.verify([dsse_key(public_key())], 1)


def test_another_keys_envelope_is_refused_also_under_our_name(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = public_key()
    monkeypatch.setenv("DASS_SIGNING_KEY", str(key.with_name("other.pem")))
    envelope = Envelope(b"{}", "application/vnd.in-toto+json", {})
    signature = envelope.sign(dsse_signer())
    with pytest.raises(VerificationError):
        envelope.verify([dsse_key(ours)], 1)
    signature.keyid = fingerprint(ours)
    with pytest.raises(VerificationError):
        envelope.verify([dsse_key(ours)], 1)


def test_two_thousand_envelopes_are_verified_in_two_seconds(key: Path) -> None:
    envelope = Envelope(b"{}" * 500, "application/vnd.in-toto+json", {})
    envelope.sign(dsse_signer())
    pem = public_key()
    dsse_key(pem)
    start = time.process_time()
    for _ in range(2000):
        envelope.verify([dsse_key(pem)], 1)
    assert time.process_time() - start < 2


def test_one_signature_reads_the_key_once(tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public_key()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("x", encoding="utf-8")
    reads: list[bytes] = []
    read = module._read

    def counted() -> bytes:
        reads.append(read())
        return reads[-1]

    monkeypatch.setattr(module, "_read", counted)
    sign(tmp_path / "folder")
    assert len(reads) == 1


def test_a_key_goes_by_where_it_was_made(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "build-7")
        patch.setenv("LOGNAME", "somebody")
        made_on = key_name()
    assert made_on.endswith("@build-7")
    assert not made_on.startswith("somebody@")
    assert key_name() == made_on
    assert serialization.load_pem_private_key(key.read_bytes(), None)
    monkeypatch.setenv("DASS_KEY_NAME", "release 2026")
    assert key_name() == "release 2026"


def test_a_key_made_elsewhere_goes_by_this_machine(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_key(key, pem_of(ec.generate_private_key(ec.SECP256R1())))
    monkeypatch.setattr("socket.gethostname", lambda: "build-7")
    assert key_name().endswith("@build-7")


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x1b[31m", "x" * 101])
def test_a_name_that_could_not_be_shown_is_refused(key: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("DASS_KEY_NAME", name)
    with pytest.raises(InputError, match="set DASS_KEY_NAME to 1 to 100 characters"):
        key_name()


@pytest.mark.parametrize(
    ("pem", "told"),
    [
        ("no key", "This is no public key: expected PEM."),
        (pem_of(ec.generate_private_key(ec.SECP256R1())).decode(), "This is no public key: expected PEM."),
        (public_pem_of(ec.generate_private_key(ec.SECP256K1())), "This is no public key on one of secp256r1"),
        (public_pem_of(rsa.generate_private_key(65537, 2048)), "This is no public key on one of secp256r1"),
    ],
)
def test_what_is_no_public_key_is_refused(pem: str, told: str) -> None:
    for use in (fingerprint, dsse_key):
        with pytest.raises(InputError, match=told):
            use(pem)


def test_a_place_where_no_key_can_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DASS_SIGNING_KEY", str(tmp_path / "file" / "key.pem"))
    with pytest.raises(InputError, match="key.pem cannot be (read|made) .Not a directory.*") as refused:
        public_key()
    assert "\n" not in str(refused.value)
    monkeypatch.setenv("DASS_SIGNING_KEY", "~nobody-of-this-name/key.pem")
    with pytest.raises(InputError, match="there is no such user. Set DASS_SIGNING_KEY"):
        public_key()


def test_a_lax_umask_makes_no_lax_key(key: Path) -> None:
    code = "import os; os.umask(0); from tasks.registry.key_file import public_key; public_key()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700


def test_two_processes_that_need_a_key_at_once_get_the_same(key: Path) -> None:
    code = "from tasks.registry.key_file import public_key; print('ready', flush=True); input(); print(public_key())"
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate()[0].strip() for process in both]
    assert told == [public_key().strip()] * 2
    assert os.listdir(key.parent) == [key.name]


def test_a_key_is_made_with_a_line_that_says_so(key: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dass"):
        known = fingerprint(public_key())
        public_key()
    assert caplog.messages == [f"Made the signing key {key} ({known[:16]}). Keep a copy: docs/keys.md."]


@pytest.mark.parametrize(
    "uri", ["awskms:///alias/mine?secret=s3cret", "gcpkms:s3cret", "file:///s3cret", "https://s3cret@host"]
)
def test_a_uri_that_is_no_token_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("DASS_SIGNING_KEY", uri)
    monkeypatch.delenv("DASS_KEY_NAME", raising=False)
    for use in (public_key, dsse_signer, key_file, key_name):
        with pytest.raises(InputError, match=r"of scheme \w+: which .* expected a file, or pkcs11:") as refused:
            use()
        assert "s3cret" not in str(refused.value)
