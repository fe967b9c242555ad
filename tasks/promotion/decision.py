"""The steps of a promotion: the proof, the decision rule by rule, and its record."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dass.errors import InputError
from dass.masks.proof import ProofError
from tasks.promotion.champion import ALIAS, RolledBack, champion_of, crown, roll_back, settle, tag_decision
from tasks.promotion.gates import Evidence, Ruling, judge
from tasks.promotion.verification import Proof, verify_version
from tasks.registry.ledger import Entry, Ledger
from tasks.registry.tracking import tracking
from tasks.registry.version_folder import EVALUATION, MANIFEST, VERSION
from tasks.registry.versions import find_version, record_of
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Promote

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from rich.table import Table


@dataclass(frozen=True)
class Decision:
    """What became of a version that was to be champion.

    Attributes:
        model: registered model.
        version: the version.
        promoted: whether it was made champion.
        forced: it was, although a rule did not hold.
        reason: why it was forced.
        rulings: rule by rule.
        previous: the champion before, or None.
        entry: number of the ledger's entry.
        repaired: what a process that was killed had left undone, and was put right first; or None.
    """

    model: str
    version: str
    promoted: bool
    forced: bool
    reason: str | None
    rulings: list[Ruling]
    previous: str | None
    entry: int
    repaired: str | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> "Table":
        """Rule by rule, for a terminal."""
        from rich.table import Table

        how = "promoted by force" if self.forced else "promoted" if self.promoted else "refused"
        title = f"{self.model} version {self.version}: {how}"
        table = Table("rule", "limit", "value", "holds", "", title=title, title_justify="left")
        for each in self.rulings:
            table.add_row(each.rule, _shown(each.limit), _shown(each.value), "yes" if each.passed else "no", each.told)
        return table


def _shown(value: Any) -> str:
    return "not measured" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def prove(ws: Workspace, model: str, version: str, rules: Promote) -> Proof | None:
    """The version's proof, where a rule asks for it.

    Raises:
        InputError, TrackingError: as in verify_version.
    """
    return verify_version(ws, model, version) if rules.proof else None


def decide(
    ws: Workspace,
    model: str,
    version: str,
    rules: Promote,
    proof: Proof | None,
    *,
    force: bool = False,
    reason: str | None = None,
) -> Decision:
    """Judge a version and, where every rule holds or `force` overrides them, make it champion.

    The ledger's entry settles who is champion; alias, tags and artifact follow it. Judged again when another version
    becomes champion meanwhile.

    Args:
        ws: the workspace.
        model: registered model.
        version: number or alias.
        rules: what is asked.
        proof: of this version, where a rule asks for it.
        force: promote although a rule does not hold.
        reason: why; needed with `force`.

    Raises:
        InputError: there is no such version, it is champion already, or there is no reason for the force.
        BrokenLedger, ForeignChampion: the history is not whole; nothing was changed.
        TrackingError: MLflow failed.
    """
    if force and not (reason or "").strip():
        raise InputError('--force needs a reason, which goes to the ledger. Add: --reason "..."')
    rulings: list[Ruling] = []
    with tracking(ws) as client:
        repaired = settle(client, model)
        made = find_version(client, model, version)
        number, manifest_digest = str(made.version), _manifest_digest(made)
        ledger = Ledger.open(client, model)
        manifest, evaluation = (record_of(client, made, name) for name in (MANIFEST, EVALUATION))

        dirty = record_of(client, made, VERSION)["git"]["dirty"]

        def judged(entries: list[Entry]) -> dict[str, Any] | None:
            champion = champion_of(entries)
            if champion == number:
                raise InputError(f"{model} version {number} is the {ALIAS} already.")
            evidence = Evidence(
                manifest,
                evaluation,
                dirty,
                None if proof is None else proof.failed,
                None if champion is None else _ratio(client, model, champion),
            )
            rulings[:] = judge(rules, evidence)
            passed = all(each.passed for each in rulings)
            record = {"passed": passed, "rules": [each.as_json() for each in rulings]}
            ledger.record("gate", number, manifest_digest, record)
            return {"forced": not passed, "reason": reason} if passed or force else None

        entry = crown(client, ledger, number, manifest_digest, "promoted", judged)
        promoted = entry is not None
        if entry is None:
            failed = [each.rule for each in rulings if not each.passed]
            entry = ledger.record("refused", number, manifest_digest, {"rules": failed})
            tag_decision(client, entry)
        decision = Decision(
            model,
            number,
            promoted,
            bool(entry.details.get("forced")),
            reason if entry.details.get("forced") else None,
            rulings,
            entry.details.get("previous"),
            entry.n,
            repaired,
        )
        client.log_dict(made.run_id, decision.as_json(), f"promotion/entry_{entry.n:06d}.json")
        return decision


def go_back(ws: Workspace, model: str, reason: str, to: str | None) -> RolledBack:
    """Roll back to an earlier champion, whose proof is checked before anything is written.

    Raises:
        InputError: there is no such champion, or no reason.
        ProofError: its proof failed.
        BrokenLedger, ForeignChampion: the history is not whole; nothing was changed.
        TrackingError: MLflow failed.
    """

    def check(version: str) -> None:
        proof = verify_version(ws, model, version)
        if proof.failed:
            told = next(step.told for step in proof.steps if step.passed is False)
            raise ProofError(f"{model} version {version} is not proved ({proof.failed}: {told}); nothing was changed.")

    with tracking(ws) as client:
        return roll_back(client, model, to, reason, check)


def _manifest_digest(made: "ModelVersion") -> str:
    try:
        return str(made.tags["manifest"])
    except KeyError:
        raise InputError(f"{made.name} version {made.version} has no manifest: it was not made by dass.") from None


def _ratio(client: "MlflowClient", model: str, champion: str) -> float:
    ratio: float = record_of(client, find_version(client, model, champion), EVALUATION)["ratio"]
    return ratio
