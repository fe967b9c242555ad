"""Registered versions with nothing behind them: enough for a ledger, and made in no time."""

import hashlib
from typing import TYPE_CHECKING

from tasks.registry.ledger import HEAD, PENDING, Ledger

if TYPE_CHECKING:
    from mlflow import MlflowClient


def manifest_of(version: str) -> str:
    """The digest of a manifest that there is none of."""
    return hashlib.sha256(version.encode()).hexdigest()


def bare_model(client: "MlflowClient", model: str, versions: int = 2) -> Ledger:
    """A registered model with versions "1" to `versions`, each registered in its ledger behind the list of keys."""
    ledger, _ = Ledger.start(client, model)
    for _ in range(versions):
        made = client.create_model_version(model, "s3://nowhere/model", tags={HEAD: PENDING})
        ledger.record("registered", str(made.version), manifest_of(str(made.version)), {})
    return ledger
