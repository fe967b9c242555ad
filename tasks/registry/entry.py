"""One entry of a ledger: an in-toto statement about a version or a key, signed, in a DSSE envelope.

A line is the envelope as canonical JSON, as any DSSE tool reads it. Its statement names the version (or the key) as
subject, with the sha256 of the version's manifest (or the key's fingerprint), and says in its predicate what happened,
and which line came before. Types: in-toto Attestation Framework v1; DSSE v1.0.
"""

import hashlib
import json
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dass.errors import InputError
from dass.files import canonical_json
from tasks.registry.key_file import dsse_key

if TYPE_CHECKING:
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import Signer

VERSION_EVENTS = ("registered", "gate", "promoted", "refused", "rolled_back", "verified", "failed", "published")
KEY_EVENTS = ("keys_started", "key_added", "key_revoked", "key_rotated")
EVENTS = (*VERSION_EVENTS, *KEY_EVENTS)
CROWNINGS = ("promoted", "rolled_back")
"""The events that make a version the champion."""
NOTHING = "0" * 64
"""What the first line names as the one before it."""
LONGEST = 6000
"""MLflow's longest param, in characters."""

PAYLOAD = "application/vnd.in-toto+json"
PREDICATE = "urn:dass:ledger-entry:1"
_STATEMENT = "https://in-toto.io/Statement/v1"
_TEXTS = ("id", "time", "event", "model", "version", "before")


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    Attributes:
        n: its number, from 0.
        id: random hex.
        time: UTC, ISO 8601 with milliseconds.
        event: one of EVENTS.
        model: the registered model.
        version: number of the version it is about; "" when it is about keys.
        manifest: sha256 of that version's manifest; of a key, its fingerprint.
        details: what else there is to say about such an event. Whole numbers in it are floats.
        before: digest of the entry before it.
        line: the line itself.
        key: fingerprint of the key that signed it.
        actor: the name of that key, as the ledger's list of keys gives it; None until that was looked up.
    """

    n: int
    id: str
    time: str
    event: str
    model: str
    version: str
    manifest: str
    details: dict[str, Any]
    before: str
    line: str
    key: str
    _envelope: "Envelope" = field(repr=False, compare=False)
    actor: str | None = None

    @property
    def digest(self) -> str:
        """sha256 (hex) of the line's bytes."""
        return hashlib.sha256(self.line.encode()).hexdigest()

    @property
    def head(self) -> str:
        """What the tag `ledger.head` says when this is the last entry about its version."""
        return f"{self.n} {self.digest}"

    def is_signed_by(self, public_pem: str) -> bool:
        """Whether the signature is that key's."""
        return _holds(self.line, public_pem)


def sealed(
    signer: "Signer", n: int, before: str, event: str, model: str, version: str, manifest: str, details: dict[str, Any]
) -> Entry:
    """A new entry, signed.

    Args:
        signer: whose key identifier is our fingerprint.
        n, before, event, model, version, manifest, details: as the attributes of `Entry`.

    Raises:
        InputError: the entry is longer than MLflow takes, or holds what is no text.
    """
    from google.protobuf import json_format
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement
    from securesystemslib.dsse import Envelope

    predicate = {
        "n": n,
        "id": secrets.token_hex(8),
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "event": event,
        "model": model,
        "version": version,
        "details": details,
        "before": before,
    }
    try:
        subject = ResourceDescriptor(name=f"{model}/{version}" if version else model, digest={"sha256": manifest})
        statement = Statement([subject.pb], PREDICATE, predicate)
        statement.validate()
        payload = json_format.MessageToJson(statement.pb, indent=None, sort_keys=True, ensure_ascii=False)
        envelope = Envelope(payload.encode(), PAYLOAD, {})
    except UnicodeEncodeError:
        raise InputError(f"An entry {event!r} holds what is no text. Write the reason in UTF-8.") from None
    envelope.sign(signer)
    line = canonical_json(envelope.to_dict())
    if len(line) > LONGEST:
        raise InputError(
            f"An entry {event!r} of {len(line)} characters does not fit into the ledger, which takes {LONGEST}. "
            "Shorten the reason."
        )
    return parse(line)


def parse(line: str) -> Entry:
    """Read a line. Whose signature it bears, and whether it holds, is not looked at.

    Raises:
        ValueError: this is no line that a ledger holds.
    """
    if len(line) > LONGEST:
        raise ValueError("longer than any")
    return _parse(line)


@lru_cache(maxsize=16384)
def _holds(line: str, public_pem: str) -> bool:
    """Each signature is computed once a process: a ledger is read many times in one command."""
    from securesystemslib.exceptions import VerificationError

    try:
        return bool(parse(line)._envelope.verify([dsse_key(public_pem)], 1))
    except VerificationError:
        return False


@lru_cache(maxsize=16384)
def _parse(line: str) -> Entry:
    try:
        return _signed(json.loads(line), line)
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("another layout") from None


def _signed(values: dict[str, Any], line: str) -> Entry:
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import FormatError

    try:
        envelope = Envelope.from_dict(values)
    except FormatError:
        raise ValueError("no envelope") from None
    # Written in one way only. Else a byte could change that means nothing, such as base64's unused bits.
    if canonical_json(envelope.to_dict()) != line or envelope.payload_type != PAYLOAD:
        raise ValueError("another layout")
    (key,) = envelope.signatures  # ValueError: not one signature
    statement = json.loads(envelope.payload)
    if statement.keys() != {"_type", "subject", "predicateType", "predicate"}:
        raise ValueError("other keys")
    if (statement["_type"], statement["predicateType"]) != (_STATEMENT, PREDICATE):
        raise ValueError("another statement")
    (subject,) = statement["subject"]
    said = statement["predicate"]
    if said.keys() != {"n", "details", *_TEXTS} or subject.keys() != {"name", "digest"}:
        raise ValueError("other keys")
    if type(said["n"]) not in (int, float) or said["n"] != int(said["n"]) or not isinstance(said["details"], dict):
        raise ValueError("other types")
    if not all(isinstance(said[name], str) for name in _TEXTS) or said["event"] not in EVENTS:
        raise ValueError("other types")
    name, version = said["model"], said["version"]
    if bool(version) != (said["event"] in VERSION_EVENTS) or subject["digest"].keys() != {"sha256"}:
        raise ValueError("another subject")
    if subject["name"] != (f"{name}/{version}" if version else name):
        raise ValueError("another subject")
    return Entry(
        n=int(said["n"]),
        **{text: said[text] for text in _TEXTS},
        manifest=subject["digest"]["sha256"],
        details=said["details"],
        line=line,
        key=key,
        _envelope=envelope,
    )
