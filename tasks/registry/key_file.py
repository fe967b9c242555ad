"""The signing key: where it lies, how it is made, what it goes by, and how it signs.

The private half stays with whoever signs. Its public half is known to others by its fingerprint.
"""

import hashlib
import os
import pwd
import re
import socket
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dass.errors import InputError
from dass.files import clear_leftovers

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer

_KEY_FILE = "DASS_SIGNING_KEY"
_KEY_NAME = "DASS_KEY_NAME"
_CURVES = ("secp256r1", "secp384r1", "secp521r1")  # what model-signing takes
_LARGEST_KEY = 1 << 20
_LONGEST_NAME = 100
_NAMED = re.compile(rb"dass key of (?P<name>[^\n]*)\n")  # before the key itself; who reads PEM passes over it


def key_file() -> Path:
    """Where the private key lies: DASS_SIGNING_KEY, or dass/signing-key.pem in the user's configuration."""
    if named := os.environ.get(_KEY_FILE):
        return Path(named).expanduser()
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "dass" / "signing-key.pem"


def key_name() -> str:
    """What the key goes by: DASS_KEY_NAME, or user@host of where it was made, as its file says in the first line.

    Raises:
        InputError: the name is too long or has control characters, or the key cannot be used.
    """
    name = os.environ.get(_KEY_NAME)
    if name is None:
        named = _NAMED.match(_read())
        name = named["name"].decode(errors="replace") if named else _user_at_host()
    if not name.isprintable() or not 0 < len(name.strip()) <= _LONGEST_NAME:
        raise InputError(f"The signing key goes by {name[:80]!r}: set {_KEY_NAME} to 1 to {_LONGEST_NAME} characters.")
    return name.strip()


def public_key() -> str:
    """The public half of the signing key, PEM. The key is made when there is none yet.

    Raises:
        InputError: the file does not hold a private elliptic-curve key without a password.
    """
    return _pem(_private_key().public_key())


def fingerprint(public_pem: str) -> str:
    """sha256 (hex) of a public key's DER SubjectPublicKeyInfo.

    Raises:
        InputError: this is no public key that could sign here.
    """
    return _fingerprint(_public_key(public_pem))


def dsse_signer() -> "Signer":
    """What signs DSSE envelopes with the signing key; `public_key.keyid` is its fingerprint. The key is read once.

    Raises:
        InputError: the key cannot be used.
    """
    from securesystemslib.signer import CryptoSigner, SSlibKey

    private = _private_key()
    public = private.public_key()
    return CryptoSigner(private, SSlibKey.from_crypto(public, _fingerprint(public)))


@lru_cache
def dsse_key(public_pem: str) -> "Key":
    """What verifies DSSE envelopes by the key with this public half; its keyid is the fingerprint.

    Raises:
        InputError: this is no public key that could sign here.
    """
    from securesystemslib.signer import SSlibKey

    public = _public_key(public_pem)
    return SSlibKey.from_crypto(public, _fingerprint(public))


def _pem(public: ec.EllipticCurvePublicKey) -> str:
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def _fingerprint(public: ec.EllipticCurvePublicKey) -> str:
    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _public_key(pem: str) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise InputError("This is no public key: expected PEM.") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise InputError(f"This is no public key on one of {', '.join(_CURVES)}.")
    return key


def _private_key() -> ec.EllipticCurvePrivateKey:
    """The key, read from its file; made when there is none yet."""
    path, pem = key_file(), _read()
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a password
        raise InputError(f"{path} is no PEM private key without a password. Set {_KEY_FILE} to one.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise InputError(f"{path} is no key on one of {', '.join(_CURVES)}. Set {_KEY_FILE} to one.")
    return key


def _read() -> bytes:
    """The key file's bytes; the key is made when there is none yet."""
    path = key_file()
    if not path.exists():
        _make_key(path)
    if not path.is_file() or path.stat().st_size > _LARGEST_KEY:  # a pipe would never end
        raise InputError(f"{path} is no file of at most {_LARGEST_KEY} bytes: expected the signing key, PEM.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): expected the signing key, PEM.") from None


def _make_key(path: Path) -> None:
    """Write a new key, unless another process was first: a link is made only where there is nothing yet."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    clear_leftovers(path.parent, path.name)  # a private key that a killed process was writing
    suffix = f".{os.getpid()}.partial"
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=suffix, dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(f"dass key of {_user_at_host()}\n".encode())
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        os.unlink(temporary)


def _user_at_host() -> str:
    """This process's user, whatever LOGNAME says, and this machine."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}".encode(errors="replace").decode()
