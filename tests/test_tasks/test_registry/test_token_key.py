"""A signing key on a PKCS#11 token: SoftHSM, where it and PyKCS11 are installed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.dsse import Envelope

from dass.errors import InputError
from tasks.registry.key_file import dsse_key, dsse_signer, fingerprint, key_file, key_name, public_key
from tasks.registry.signing import check, sign

PIN = "471108"
CURVES: dict[str, ec.EllipticCurve] = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}
_MODULES = ("/usr/lib/softhsm", "/usr/lib64/softhsm", "/usr/lib/x86_64-linux-gnu/softhsm", "/usr/local/lib/softhsm")

# Of two pairs of one name, the first one's public key and the second one's private key are taken away.
MIX_UP = """
import sys, PyKCS11
lib = PyKCS11.PyKCS11Lib(); lib.load(sys.argv[1])
slot = next(s for s in lib.getSlotList() if lib.getTokenInfo(s).label.strip() == "dass")
session = lib.openSession(slot, PyKCS11.CKF_SERIAL_SESSION | PyKCS11.CKF_RW_SESSION); session.login(sys.argv[2])
for kind, number in ((PyKCS11.CKO_PUBLIC_KEY, 0xE0), (PyKCS11.CKO_PRIVATE_KEY, 0xE1)):
    (found,) = session.findObjects([(PyKCS11.CKA_CLASS, kind), (PyKCS11.CKA_ID, (number,))])
    session.destroyObject(found)
"""


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A token called dass with a key for each curve; gives what stands behind "?" in a URI, without a PIN."""
    pytest.importorskip("PyKCS11", reason="needs PyKCS11: pip install PyKCS11")
    module = next((found for folder in _MODULES if (found := Path(folder, "libsofthsm2.so")).is_file()), None)
    if module is None or shutil.which("softhsm2-util") is None:
        pytest.skip("needs SoftHSM: apt install softhsm2")
    home = tmp_path_factory.mktemp("softhsm")
    (home / "tokens").mkdir()
    (home / "softhsm2.conf").write_text(f"directories.tokendir = {home}/tokens\nlog.level = ERROR\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(home / "softhsm2.conf"))
        run("softhsm2-util", "--init-token", "--free", "--label", "dass", "--pin", PIN, "--so-pin", "815000")
        keys = [(name, curve, f"a{number}") for number, (name, curve) in enumerate(CURVES.items())]
        keys += [("k256", ec.SECP256K1(), "c0"), ("twin", ec.SECP256R1(), "e0"), ("twin", ec.SECP256R1(), "e1")]
        for name, curve, number in keys:
            (home / f"{number}.pem").write_bytes(
                ec.generate_private_key(curve).private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
            )
            pair = ("--import", str(home / f"{number}.pem"), "--label", name, "--id", number)
            run("softhsm2-util", *pair, "--token", "dass", "--pin", PIN)
        run(sys.executable, "-c", MIX_UP, str(module), PIN)
        yield f"module-path={module}"


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def pin(tmp_path: Path) -> str:
    """The PIN's file as an editor leaves it, for a URI."""
    (tmp_path / "pin").write_text(f"{PIN}\n", encoding="utf-8")
    return f"pin-source=file:{tmp_path}/pin"


@pytest.mark.slow
@pytest.mark.parametrize("named", [*(f"object={curve}" for curve in CURVES), "id=%A1", "object=p384;id=%a1"])
def test_a_key_on_a_token_signs_folders_and_envelopes(
    token: str, pin: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASS_SIGNING_KEY", f"pkcs11:token=dass;{named}?{token}&{pin}")
    known = fingerprint(public_key())
    envelope = Envelope(b"{}", "application/vnd.in-toto+json", {})
    envelope.sign(dsse_signer())
    assert list(envelope.verify([dsse_key(public_key())], 1)) == [known]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("x", encoding="utf-8")
    assert sign(folder) == known
    check(folder, public_key())
    monkeypatch.delenv("DASS_KEY_NAME", raising=False)
    assert "@" in key_name()
    with pytest.raises(InputError, match="DASS_SIGNING_KEY names a key on a token: there is no key file"):
        key_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("token=other;object=p256", "Could not find a token with label other"),
        ("token=dass;object=none", "Could not find any object with label none"),
        ("token=dass", "Neither 'id' nor 'object'"),
        ("token=dass;object=k256", "Unsupported key for curve"),
        ("token=dass;object", "malformed path attribute"),
    ],
)
def test_a_uri_that_names_no_key_is_refused(
    token: str, pin: str, path: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASS_SIGNING_KEY", f"pkcs11:{path}?{token}&{pin}")
    with pytest.raises(InputError, match=f"in DASS_SIGNING_KEY cannot be used .*{told}.*docs/keys.md") as refused:
        public_key()
    assert PIN not in str(refused.value)


@pytest.mark.slow
def test_another_keys_public_half_is_seen_before_a_signature_is_given_out(
    token: str, pin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASS_SIGNING_KEY", f"pkcs11:token=dass;object=twin?{token}&{pin}")
    with pytest.raises(InputError, match="names a private key and another one's public key"):
        dsse_signer().sign(b"payload")


@pytest.mark.slow
def test_a_wrong_pin_and_none_are_told_apart_and_not_shown(
    token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pin").write_text("999123", encoding="utf-8")
    code = "from tasks.registry.key_file import public_key; public_key()"  # nobody is logged in there yet
    for query, told in (
        (f"&pin-source={tmp_path}/pin", "CKR_PIN_INCORRECT"),
        ("", "Could not find any object with label p256"),
        (f"&pin-source={tmp_path}/none", "the file of pin-source cannot be read (No such file or directory)"),
    ):
        uri = f"pkcs11:token=dass;object=p256?{token}{query}"
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "DASS_SIGNING_KEY": uri}, capture_output=True, text=True
        )
        assert told in done.stderr
        assert "999123" not in done.stderr


@pytest.mark.slow
def test_a_pin_in_the_uri_is_refused_and_not_shown(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASS_SIGNING_KEY", f"pkcs11:token=dass;object=p256?{token}&pin-value={PIN}")
    with pytest.raises(InputError, match="holds its PIN. Write the PIN to a file of mode 0600") as refused:
        public_key()
    assert PIN not in str(refused.value)


@pytest.mark.slow
def test_a_module_that_is_not_there_is_told(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASS_SIGNING_KEY", "pkcs11:token=dass;object=p256?module-path=/nowhere/lib.so")
    with pytest.raises(InputError, match="module-path is /nowhere/lib.so, which is not there"):
        public_key()


@pytest.mark.parametrize("scheme", ["pkcs11", "PKCS11"])
def test_a_token_without_the_package_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setitem(sys.modules, "PyKCS11", None)  # as if it were not installed
    monkeypatch.setenv("DASS_SIGNING_KEY", f"{scheme}:token=dass;object=a;pin-value=4711?pin-value=4712")
    with pytest.raises(InputError, match="DASS_SIGNING_KEY needs PyKCS11, .* Run: pip install PyKCS11$") as told:
        public_key()
    assert "471" not in str(told.value)
