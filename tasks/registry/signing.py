"""Signatures over version folders: OpenSSF model-signing with an elliptic-curve key, without a network.

The private key stays with whoever signs; its public half lies at the registered model, by its fingerprint.
"""

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature

from dass.files import sha256_file
from tasks.registry.key_file import dsse_key, dsse_signer, fingerprint

if TYPE_CHECKING:
    from model_signing import hashing
    from securesystemslib.signer import Signer
    from sigstore_models.bundle.v1 import Bundle

SIGNATURE = "dass/model.sig"
"""The signature's place in a folder."""
_LARGEST = 16 << 20  # bytes of a signature: some 200 for each file that it names
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# mlflow.*.load_model("models:/NAME@ALIAS") writes the name and version it was asked for into the folder that it read.
# Where that folder is the store itself (the embedded default), the file stays there. Nothing of ours reads it.
FROM_MLFLOW = "registered_model_meta"


class SignatureError(Exception):
    """A folder is not what was signed. The message is one line: the first file that differs, or what the key lacks."""


def sign(folder: Path, signer: "Signer | None" = None) -> str:
    """Sign every file of a folder into dass/model.sig. One that is as it was when it was hashed or written is not read.

    Args:
        folder: what is signed.
        signer: from `dsse_signer()`, when the key was read before.

    Returns:
        The key's fingerprint.

    Raises:
        SignatureError: the folder holds a symlink or a pickle.
        InputError: the signing key cannot be used.
    """
    refuse_links_and_pickles(folder)
    signer = signer or dsse_signer()
    target = folder / SIGNATURE
    target.parent.mkdir(exist_ok=True)
    target.write_text(_bundle(folder, signer).to_json(), encoding="utf-8")
    return signer.public_key.keyid


def _bundle(folder: Path, signer: "Signer") -> "Bundle":
    """model-signing's bundle over a folder. Its own signers read the key from a file of their own accord; ours has it.

    What verifies it is model-signing itself.
    """
    from google.protobuf import json_format
    from model_signing._signing.signing import _IN_TOTO_JSON_PAYLOAD_TYPE, Payload
    from securesystemslib.dsse import Envelope
    from sigstore_models import intoto
    from sigstore_models.bundle.v1 import Bundle, VerificationMaterial
    from sigstore_models.common.v1 import PublicKeyIdentifier

    statement = json_format.MessageToJson(Payload(_hashing(remembered=True).hash(folder)).statement.pb).encode()
    signature = Envelope(statement, _IN_TOTO_JSON_PAYLOAD_TYPE, {}).sign(signer)
    hint = hashlib.sha256(signer.public_key.keyval["public"].encode()).hexdigest()
    return Bundle(
        media_type="application/vnd.dev.sigstore.bundle.v0.3+json",
        verification_material=VerificationMaterial(public_key=PublicKeyIdentifier(hint=hint), tlog_entries=[]),
        dsse_envelope=intoto.Envelope(
            payload=base64.b64encode(statement),
            payload_type=_IN_TOTO_JSON_PAYLOAD_TYPE,
            signatures=[intoto.Signature(sig=base64.b64encode(bytes.fromhex(signature.signature)), keyid="")],
        ),
    )


def check(folder: Path, public_pem: str) -> None:
    """Compare a folder with its signature: the names first, then every file's digest.

    Raises:
        SignatureError: a file is missing, extra or differs, a symlink or a pickle is among them, or the signature is
            damaged, larger than 16 MiB or by another key.
    """
    refuse_links_and_pickles(folder)
    signature = folder / SIGNATURE
    signed = signed_files(signature)
    with tempfile.TemporaryDirectory() as scratch:  # empty: what the signature itself is shows before a file is read
        _is_as_signed(Path(scratch), signature, public_pem)
    if told := _first_other_name(_present(folder), signed, folder):
        raise SignatureError(told)
    if not _is_as_signed(folder, signature, public_pem):
        raise SignatureError(_first_difference(folder, signed) or _damaged(signature))


def _is_as_signed(folder: Path, signature: Path, public_pem: str) -> bool:
    """Whether a folder holds what a signature says. Hashes every file in it.

    Raises:
        SignatureError: the signature is damaged, or by another key.
    """
    from model_signing import verifying

    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(public_pem)
        file.flush()
        config = verifying.Config().use_elliptic_key_verifier(public_key=file.name).set_hashing_config(_hashing())
        try:
            config.verify(folder, signature)
        except InvalidSignature:
            raise SignatureError(f"{signature} is damaged: it does not fit what it signs.") from None
        except ValueError as error:
            if str(error).startswith("Key mismatch"):
                known = fingerprint(public_pem)
                raise SignatureError(f"{signature} was made with another key than {known}.") from None
            return False
    return True


def missing_files(folder: Path) -> list[str]:
    """Names of signed files that are not in a folder. Their content is not looked at.

    Raises:
        SignatureError: the signature is damaged.
    """
    if not (folder / SIGNATURE).is_file():
        return [SIGNATURE]
    return [name for name in signed_files(folder / SIGNATURE) if not (folder / name).is_file()]


def _hashing(remembered: bool = False) -> "hashing.Config":
    """How a folder is hashed. To sign it, digests that are remembered will do; to check it, every byte is read."""
    from model_signing import hashing  # takes a second; whoever signs nothing does not pay for it

    # Git's own files are no exception here: whatever lies in the folder is signed.
    config = hashing.Config().set_ignored_paths(paths=[SIGNATURE, FROM_MLFLOW], ignore_git_paths=False)
    if remembered:
        from tasks.registry.remembered import Serializer, remembered_digest

        config._serializer = Serializer(remembered_digest)
    return config


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file, link and special file of a folder, with its relative name, sorted."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(folder).as_posix(), path


def refuse_links_and_pickles(folder: Path) -> None:
    """Raise SignatureError when a folder holds a symlink or a pickle: neither is ever part of a version."""
    for name, path in _files(folder):
        if path.is_symlink():
            raise SignatureError(f"{name} in {folder} is a symlink to {os.readlink(path)}: expected the file itself.")
        if name.startswith(f"{FROM_MLFLOW}/"):  # a folder of that name would be ignored as a whole
            raise SignatureError(f"{name} in {folder} was never signed.")
        if path.suffix.lower() in _PICKLES:
            raise SignatureError(f"{name} in {folder} is a pickle, which can run code when read.")


def signed_files(signature: Path) -> dict[str, str]:
    """File name -> sha256, as the signature says. Whether it says so truly is not looked at here.

    Raises:
        SignatureError: the signature is missing, damaged or larger than 16 MiB.
    """
    if not signature.is_file():
        raise SignatureError(f"{signature} is missing: the folder is not signed.")
    if (size := signature.stat().st_size) > _LARGEST:
        raise SignatureError(f"{signature} has {size} bytes: expected a signature of at most {_LARGEST}.")
    try:
        return named_in(signature.read_text(encoding="utf-8"))
    except ValueError:
        raise SignatureError(_damaged(signature)) from None


def named_in(text: str) -> dict[str, str]:
    """As `signed_files`, of a signature's text.

    Raises:
        ValueError: this is no signature.
    """
    from sigstore_models.bundle.v1 import Bundle

    try:
        bundle = Bundle.from_json(text)
        # Written in one way only. Else a byte could change that means nothing, such as base64's unused bits.
        if bundle.to_json() != text or bundle.dsse_envelope is None:
            raise ValueError
        statement = json.loads(base64.b64decode(json.loads(text)["dsseEnvelope"]["payload"]))
        return {resource["name"]: resource["digest"] for resource in statement["predicate"]["resources"]}
    except (LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError("no signature") from None


def signature_holds(text: str, public_pem: str) -> bool:
    """Whether a signature's text, which `named_in` could read, was signed by the key. No file it names is looked at."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import Signature

    said, key = json.loads(text)["dsseEnvelope"], dsse_key(public_pem)
    if len(said["signatures"]) != 1:
        return False
    signature = Signature(key.keyid, base64.b64decode(said["signatures"][0]["sig"]).hex())
    try:
        envelope = Envelope(base64.b64decode(said["payload"]), said["payloadType"], {key.keyid: signature})
        return bool(envelope.verify([key], 1))
    except VerificationError:
        return False


def _damaged(signature: Path) -> str:
    return f"{signature} is damaged: it cannot be read as a signature."


def _present(folder: Path) -> dict[str, Path]:
    """What of a folder is compared with its signature, by name."""
    return {name: path for name, path in _files(folder) if name not in (SIGNATURE, FROM_MLFLOW)}


def _first_other_name(present: dict[str, Path], signed: dict[str, str], folder: Path) -> str | None:
    """The first file, by name, that is missing or extra. No file is read: an extra one may be of any size."""
    for name in sorted(present.keys() ^ signed.keys()):
        if name in signed:
            return f"{name} is missing from {folder}: it was signed with it."
        return f"{name} in {folder} is extra: it was never signed."
    return None


def _first_difference(folder: Path, signed: dict[str, str]) -> str | None:
    """The first file, by name, that is missing, extra or differs; None when all are as signed."""
    present = _present(folder)
    if told := _first_other_name(present, signed, folder):
        return told
    for name in sorted(present):
        if not present[name].is_file() or sha256_file(present[name]) != signed[name]:  # a pipe would never end
            return f"{name} in {folder} differs from what was signed."
    return None
