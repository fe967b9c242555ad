"""Registered versions with nothing behind them: enough for a ledger, and made in no time."""

import hashlib
from typing import TYPE_CHECKING, Any

from tasks.registry.ledger import HEAD, PENDING, Ledger
from tasks.registry.publishing import entry_details
from tasks.registry.result import Result

if TYPE_CHECKING:
    from mlflow import MlflowClient


def manifest_of(version: str) -> str:
    """The digest of a manifest that there is none of."""
    return hashlib.sha256(version.encode()).hexdigest()


def details_of(version: str) -> dict[str, Any]:
    """What the ledger says of such a version when it is registered, as the product writes it."""
    digest = manifest_of(version)
    made = {"settings": {"prune": {"method": "dass", "pattern": "unstructured"}}, "masks": {"digest": digest}}
    model, sparsity = {"perplexity": 2.0}, {"mlp": 0.5, "model": 0.25}
    result = Result(
        manifest={**made, "base": {"digest": digest}},
        manifest_digest=digest,
        recovery={"trained": False},
        evaluation={"dense": model, "pruned": model, "ratio": 1.0, "sparsity": sparsity, "context_length": 32},
        tasks={"tasks": {}},
        calibration_set={},
        evaluation_set={"digest": digest},
        settings={},
        artifact="masks",
    )
    return entry_details(result, {"git_commit": None, "git_dirty": None}, signature=digest)


def bare_model(client: "MlflowClient", model: str, versions: int = 2) -> Ledger:
    """A registered model with versions "1" to `versions`, each registered in its ledger behind the list of keys."""
    ledger, _ = Ledger.start(client, model)
    for _ in range(versions):
        made = client.create_model_version(model, "s3://nowhere/model", tags={HEAD: PENDING})
        ledger.record("registered", str(made.version), manifest_of(str(made.version)), details_of(str(made.version)))
    return ledger
