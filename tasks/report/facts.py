"""What the page shows, read from a version's signed files and its ledger. Nothing is believed that is not checked."""

import logging
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from dass.errors import InputError
from dass.masks.density import NeuronDensity, neuron_densities
from dass.masks.mask_file import MaskFile
from tasks.plot_data import norms_by_layer
from tasks.promotion.decision import evidence_of
from tasks.promotion.diff import diff
from tasks.promotion.gates import Ruling, judge
from tasks.registry.chain import Chain
from tasks.registry.checked import CHAMPION, CheckedVersion, checked_version
from tasks.registry.signing import SignatureError
from tasks.registry.tracking import is_embedded, tracking, tracking_uri
from tasks.registry.version_folder import EVALUATION, MANIFEST, MASKS, SETTINGS, STATISTICS, VERSION
from tasks.workspace.folder import Workspace
from tasks.workspace.redaction import shown_address
from tasks.workspace.settings import Promote

logger = logging.getLogger("dass")


@dataclass(frozen=True)
class Change:
    """What lies between the champion and this version.

    Attributes:
        champion: the champion's number.
        record: as `tasks.promotion.diff.diff`; None: they cannot be compared.
        told: why not.
    """

    champion: str
    record: dict[str, Any] | None
    told: str = ""


@dataclass(frozen=True)
class Facts:
    """All that the page shows of one version.

    Attributes:
        model, number: which version.
        run_id: the MLflow run that recorded it.
        tracking_uri: where MLflow keeps it, without credentials; no path of this machine, for the page may travel.
        manifest, evaluation, settings, origin: its records (origin is version.json).
        recovery: its record of recovery; {"trained": False} where there was none.
        tasks: metrics/tasks.json as it was registered; {"tasks": {}} where no zero-shot task was asked.
        chain: the ledger, which holds.
        rulings: the rules of promotion as they would be judged now.
        proof: "verified" or "failed", as the ledger last says; None: not yet.
        densities: of each layer's neurons.
        norms: ‖z‖₂ of each layer's neurons over the calibration tokens.
        change: since the champion; None: there is none, or this is it.
    """

    model: str
    number: str
    run_id: str
    tracking_uri: str
    manifest: dict[str, Any]
    evaluation: dict[str, Any]
    settings: dict[str, Any]
    origin: dict[str, Any]
    recovery: dict[str, Any]
    tasks: dict[str, Any]
    chain: Chain
    rulings: list[Ruling]
    proof: str | None
    densities: list[NeuronDensity]
    norms: list[Tensor]
    change: Change | None

    @property
    def aliases(self) -> list[str]:
        """What the ledger says it is."""
        return [CHAMPION] if self.chain.champion == self.number else []


def read_facts(ws: Workspace, model: str, wanted: str, rules: Promote) -> Facts:
    """Read everything about a version.

    Args:
        ws: the workspace.
        model: registered model.
        wanted: number or alias.
        rules: what is asked of a champion.

    Raises:
        InputError: there is no such version.
        UnavailableError: its files are gone.
        BrokenLedger, ForeignChampion, SignatureError: it is not what the ledger says.
        TrackingError: MLflow failed.
    """
    with tracking(ws) as client:
        version = checked_version(client, model, wanted, ws)
        records = {name: version.record(name) for name in (MANIFEST, EVALUATION, SETTINGS, VERSION)}
        with version.file(MASKS) as path:
            densities = neuron_densities(MaskFile(path))
        with version.file(STATISTICS) as path:
            norms = norms_by_layer(load_file(path))
        return Facts(
            model,
            version.number,
            str(version.made.run_id),
            "mlflow.db of the workspace" if is_embedded(ws) else shown_address(tracking_uri(ws)),
            records[MANIFEST],
            records[EVALUATION],
            records[SETTINGS],
            records[VERSION],
            version.recovery,
            version.tasks,
            version.chain,
            *_judged(version, rules),
            densities,
            norms,
            _change(ws, version),
        )


def _judged(version: CheckedVersion, rules: Promote) -> tuple[list[Ruling], str | None]:
    """The rules as they stand, with the last proof in the ledger instead of a new one."""
    proofs = [
        entry
        for entry in version.chain.entries
        if entry.version == version.number and entry.event in ("verified", "failed")
    ]
    proof = proofs[-1].event if proofs else None
    failed = None if proof is None else "" if proof == "verified" else _failed_steps(proofs[-1].details)
    evidence = evidence_of(version)(failed, version.chain.champion, version.chain)
    return judge(rules, evidence), proof


def _failed_steps(details: dict[str, Any]) -> str:
    steps = details.get("steps")
    named = [str(step[0]) for step in steps if step[1] is False] if isinstance(steps, list) else []
    return ", ".join(named) or "unknown"


def _change(ws: Workspace, version: CheckedVersion) -> Change | None:
    champion = version.chain.champion
    if champion is None or champion == version.number:
        return None
    try:
        return Change(champion, diff(ws, version.model, champion, version.number))
    except (InputError, SignatureError) as error:  # another model's masks, or the champion's files are gone or changed
        logger.warning("Not compared with the champion, version %s: %s", champion, error)
        return Change(champion, None, str(error))
