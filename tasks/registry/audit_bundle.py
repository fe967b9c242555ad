"""`dass export-audit`: the history of a model in one file, to be checked where there is neither MLflow nor a workspace.

What MLflow has is written down as it is. Whether it holds is what `tasks.registry.audit` finds.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dass.errors import InputError, UnavailableError
from dass.files import complete_file
from tasks.registry.audit import audit
from tasks.registry.audit_archive import BUNDLE, FILES, FORMAT, entry_name, key_name, version_name, write_archive
from tasks.registry.chain import Chain
from tasks.registry.ledger import Ledger
from tasks.registry.signing import SIGNATURE
from tasks.registry.tracking import store_of, tracking
from tasks.registry.versions import file_of, version_numbered
from tasks.workspace.folder import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient


def export_audit(ws: Workspace, model: str, file: Path) -> dict[str, Any]:
    """Write a model's history. Equal histories give equal bytes.

    Args:
        ws: the workspace.
        model: registered model.
        file: where; there is nothing yet.

    Returns:
        {"file", "model", "store", "entries", "head", "root": fingerprint of the key that began the ledger, "versions",
        "notes", "faults": what `audit` says of the file}

    Raises:
        InputError: there is something at `file`, no such model, or nothing to write.
        BrokenLedger: the ledger is not whole.
        TrackingError: MLflow failed.
    """
    _check_free(file)
    with tracking(ws) as client:
        ledger = Ledger.open(client, model, ws)
        chain = ledger.chain()
        ledger.check_heads(chain.entries)
        if chain.root is None:
            raise InputError(f"The ledger of {model!r} has no entry yet: there is no history to export. Run: dass run")
        contents = _contents(client, store_of(client), model, chain)
    with complete_file(file) as temporary:
        write_archive(temporary, contents)
        found = audit(temporary)
        _check_free(file)  # what somebody put there meanwhile
    return {
        "file": str(file),
        "model": model,
        "store": found.store,
        "entries": len(chain.entries),
        "head": chain.entries[-1].digest,
        "root": chain.root.key,
        "versions": found.versions,
        "notes": found.notes,
        "faults": found.faults,
    }


def _check_free(file: Path) -> None:
    if file.exists() or file.is_symlink():
        raise InputError(f"{file} is there already: expected a name for a new file. Nothing was written.")


def _contents(client: "MlflowClient", store: str, model: str, chain: Chain) -> dict[str, bytes]:
    assert chain.root is not None
    contents = {entry_name(entry.n): entry.line.encode() for entry in chain.entries}
    contents |= {key_name(key): key.public.encode() for key in chain.keyring.keys.values()}
    versions: dict[str, list[str]] = {}
    for version in dict.fromkeys(entry.version for entry in chain.entries if entry.event == "registered"):
        files = _files(client, model, version)
        versions[version] = sorted(files)
        contents |= {version_name(version, name): content for name, content in files.items()}
    last = chain.entries[-1]
    bundle = {
        "format": FORMAT,
        "model": model,
        "store": store,
        "head": {"n": last.n, "digest": last.digest},
        "root": chain.root.digest,
        "versions": versions,
    }
    text = json.dumps(bundle, indent=2, sort_keys=True, ensure_ascii=False)
    return {**contents, BUNDLE: f"{text}\n".encode()}


def _files(client: "MlflowClient", model: str, version: str) -> dict[str, bytes]:
    """What there still is of a version. Without the signature nothing else says anything."""
    made = version_numbered(client, model, version)
    if made is None:
        return {}
    found: dict[str, bytes] = {}
    for name in FILES:
        try:
            with file_of(client, made, name) as path:
                found[name] = path.read_bytes()
        except UnavailableError:
            return {}
        except InputError:  # this file only
            continue
    return found if SIGNATURE in found else {}
