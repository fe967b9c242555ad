"""The passphrase of the signing key, from the environment or a file that it names. Never shown."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from dass.errors import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

_TEXT = "DASS_SIGNING_KEY_PASSPHRASE"
_FILE = "DASS_SIGNING_KEY_PASSPHRASE_FILE"
_LONGEST = 1023  # bytes; what cryptography takes


def read_passphrase() -> bytes | None:
    """The passphrase, when there is one: an empty variable is none. Of a file, the first line without its end.

    Raises:
        InputError: both variables are set, the file cannot be read, or the passphrase is empty or too long.
    """
    text, named = os.environ.get(_TEXT), os.environ.get(_FILE)
    if text and named:
        raise InputError(f"{_TEXT} and {_FILE} are both set: expected one of them.")
    if text:
        found, where = os.fsencode(text), _TEXT
    elif named:
        found, where = _first_line(Path(named)), f"{named} ({_FILE})"
    else:
        return None
    if not 0 < len(found) <= _LONGEST:
        raise InputError(f"{where} holds a passphrase of {len(found)} bytes: expected 1 to {_LONGEST}.")
    return found


def decrypted(path: Path, pem: bytes) -> "PrivateKeyTypes":
    """The private key in a PEM text, by its passphrase when it has one.

    Args:
        path: where it was read, for messages.
        pem: the text.

    Raises:
        InputError: it is no private key, its passphrase is missing or wrong, or there is one and the key has none.
    """
    passphrase = read_passphrase()
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{path} is no PEM private key. Set DASS_SIGNING_KEY to one.") from None
    except TypeError:  # it is encrypted
        if passphrase is None:
            raise InputError(f"{path} has a passphrase. Set {_TEXT} to it, or {_FILE} to a file with it.") from None
        try:
            return load_pem_private_key(pem, passphrase)
        except (ValueError, UnsupportedAlgorithm):
            raise InputError(f"{path} has another passphrase than the one of {_TEXT} or {_FILE}. Set it.") from None
    if passphrase is not None:
        raise InputError(
            f"{path} has no passphrase, but {_TEXT} or {_FILE} gives one. Unset it, or encrypt the key: docs/keys.md."
        )
    return key


def _first_line(path: Path) -> bytes:
    try:
        if not path.is_file():  # a pipe could be read only once
            raise InputError(f"{path} is no file: expected the passphrase that {_FILE} names.")
        with path.open("rb") as file:
            return file.readline(_LONGEST + 2).rstrip(b"\r\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): expected the passphrase of {_FILE}.") from None
