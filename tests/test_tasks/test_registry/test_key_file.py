"""The signing key: where it lies, how it is made, and what it signs."""

import logging
import os
import shutil
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


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for a key that no other test knows."""
    path = tmp_path / "keys" / "mine.pem"
    monkeypatch.setenv("DASS_SIGNING_KEY", str(path))
    for name in ("DASS_KEY_NAME", "DASS_SIGNING_KEY_PASSPHRASE", "DASS_SIGNING_KEY_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)
    return path


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
