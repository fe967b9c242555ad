"""The signing key: where it lies, how it is made, what it goes by, and how it signs.

The private half stays with whoever signs. Its public half is known to others by its fingerprint.
"""

import hashlib
import logging
import os
import pwd
import re
import socket
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dass.errors import InputError
from dass.files import clear_leftovers, fsync_path
from tasks.registry.passphrase import decrypted, read_passphrase
from tasks.registry.private_file import check_folder, read_private

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer

logger = logging.getLogger("dass")

_KEY_FILE = "DASS_SIGNING_KEY"
_KEY_NAME = "DASS_KEY_NAME"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_CURVES = ("secp256r1", "secp384r1", "secp521r1")  # what model-signing takes
_LARGEST_KEY = 1 << 20
_LONGEST_NAME = 100
_NAMED = re.compile(rb"dass key of (?P<name>[^\n]*)\n")  # before the key itself; who reads PEM passes over it


def key_file() -> Path:
    """Where the private key lies: DASS_SIGNING_KEY, or dass/signing-key.pem in the user's configuration.

    Raises:
        InputError: it lies in no file, or that of an unknown user.
    """
    if _token_uri():
        raise InputError(f"{_KEY_FILE} names a key on a token: there is no key file.")
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    named = os.environ.get(_KEY_FILE) or f"{home}/dass/signing-key.pem"
    try:
        return Path(named).expanduser()
    except RuntimeError:
        raise InputError(f"The signing key's place is {named}, and there is no such user. Set {_KEY_FILE}.") from None


def key_name() -> str:
    """What the key goes by: DASS_KEY_NAME, or user@host of where it was made, as its file says in the first line.

    Raises:
        InputError: the name is too long or has control characters, or the key cannot be used.
    """
    name = os.environ.get(_KEY_NAME)
    if name is None:
        named = None if _token_uri() else _NAMED.match(_read())
        name = named["name"].decode(errors="replace") if named else _user_at_host()
    if not name.isprintable() or not 0 < len(name.strip()) <= _LONGEST_NAME:
        raise InputError(f"The signing key goes by {name[:80]!r}: set {_KEY_NAME} to 1 to {_LONGEST_NAME} characters.")
    return name.strip()


def public_key() -> str:
    """The public half of the signing key, PEM. The key is made when there is none yet.

    Raises:
        InputError: the key cannot be used: others can read it, its passphrase is missing, it is of another type.
    """
    return str(dsse_signer().public_key.keyval["public"])


def is_made() -> bool:
    """Whether there is a signing key: on a token, or in its file."""
    return _token_uri() is not None or os.path.lexists(key_file())


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
    if uri := _token_uri():
        from tasks.registry.token_key import token_signer

        return token_signer(uri, _fingerprint)
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
    key = SSlibKey.from_crypto(public, _fingerprint(public))
    key._crypto_key = lambda: public  # type: ignore[method-assign]  # it would read the PEM again for each signature
    return key


def _token_uri() -> str | None:
    """The key's URI, when it lies on a token.

    Raises:
        InputError: it is a URI of another scheme.
    """
    named = os.environ.get(_KEY_FILE, "")
    scheme = _SCHEME.match(named)
    if scheme is None:
        return None
    if scheme[0].lower() != "pkcs11:":  # the rest may hold a secret
        raise InputError(
            f"{_KEY_FILE} is a URI of scheme {scheme[0]} which signs nothing here: expected a file, or pkcs11:... of a "
            "token. A key in a cloud's KMS signs by way of its vendor's PKCS#11 module."
        )
    return f"pkcs11:{named[len('pkcs11:') :]}"


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
    path = key_file()
    key = decrypted(path, _read())
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise InputError(f"{path} is no key on one of {', '.join(_CURVES)}. Set {_KEY_FILE} to one.")
    return key


def _read() -> bytes:
    """The key file's bytes; the key is made when there is none yet."""
    path = key_file()
    try:
        return read_private(path, "the signing key", _LARGEST_KEY)
    except FileNotFoundError:
        make_key(path)
    try:
        return read_private(path, "the signing key", _LARGEST_KEY)
    except FileNotFoundError:  # a link that leads nowhere
        raise InputError(f"{path} leads nowhere: expected the signing key.") from None


def public_half(path: Path) -> str:
    """The public half, PEM, of a private key file that is not the signing key yet.

    Raises:
        InputError: it cannot be used.
    """
    key = decrypted(path, read_private(path, "the signing key", _LARGEST_KEY))
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{path} is no key on one of {', '.join(_CURVES)}.")
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def make_key(path: Path) -> None:
    """Write a new key, unless another process was first: a link is made only where there is nothing yet."""
    passphrase = read_passphrase()
    lock = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_folder(path.parent, "the signing key")
        clear_leftovers(path.parent, path.name)  # a private key that a killed process was writing
        suffix = f".{os.getpid()}.partial"
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=suffix, dir=path.parent)  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(f"dass key of {_user_at_host()}\n".encode())
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                os.link(temporary, path)
                fsync_path(path.parent)
                logger.info(
                    "Made the signing key %s (%s). Keep a copy: docs/keys.md.",
                    path,
                    _fingerprint(key.public_key())[:16],
                )
        finally:
            os.unlink(temporary)
    except OSError as error:
        raise InputError(
            f"The signing key {path} cannot be made ({error.strerror}). Set {_KEY_FILE} to where one may be."
        ) from None


def _user_at_host() -> str:
    """This process's user, whatever LOGNAME says, and this machine."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}".encode(errors="replace").decode()
