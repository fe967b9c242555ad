"""Lines of a ledger as an attacker writes them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from securesystemslib.dsse import Envelope

from dass.files import canonical_json
from tasks.registry.entry import parse
from tasks.registry.key_file import dsse_signer

if TYPE_CHECKING:
    from securesystemslib.signer import Signer


def line_with(line: str, payload: bytes) -> str:
    """The envelope of a line around another payload; its signature is the old one."""
    envelope = Envelope.from_dict(json.loads(line))
    envelope.payload = payload
    return canonical_json(envelope.to_dict())


def altered(line: str, signer: "Signer | None" = None, **changes: Any) -> str:
    """A line whose statement says something else.

    Args:
        line: a true one.
        signer: who signs the change; None leaves the old signature.
        changes: of the predicate.
    """
    envelope = Envelope.from_dict(json.loads(line))
    statement = json.loads(envelope.payload)
    statement["predicate"] |= changes
    envelope.payload = json.dumps(statement, sort_keys=True, ensure_ascii=False).encode()
    if signer is not None:
        envelope.signatures = {}
        envelope.sign(signer)
    changed = canonical_json(envelope.to_dict())
    parse(changed)  # well-formed
    return changed


@contextmanager
def another_user(folder: Path) -> Iterator[None]:
    """Somebody with a key and a memory of their own, both made when they are first needed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASS_SIGNING_KEY", str(folder / "signing-key.pem"))
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        patch.setenv("DASS_KEY_NAME", folder.name)
        yield


def strangers_signer(folder: Path) -> "Signer":
    """What a stranger signs with."""
    with another_user(folder):
        return dsse_signer()
