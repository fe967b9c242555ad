"""The steps of a promotion: the proof, the decision rule by rule, and its record."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dass.errors import InputError
from dass.masks.proof import ProofError
from tasks.promotion.champion import ALIAS, RolledBack, crown, roll_back, settle, tag_decision
from tasks.promotion.gates import Evidence, Ruling, judge
from tasks.promotion.proof import Proof
from tasks.promotion.verification import verify_version
from tasks.registry.chain import Chain
from tasks.registry.checked import CheckedVersion, checked_version, registration_of
from tasks.registry.ledger import Ledger
from tasks.registry.publishing import anchor_ledger
from tasks.registry.timeline import plain
from tasks.registry.tracking import reading
from tasks.registry.version_folder import EVALUATION, MANIFEST, VERSION
from tasks.registry.versions import find_version
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Promote
from tasks.workspace.tables import Fitted, shown, table

if TYPE_CHECKING:
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
        signed_by: name of the key that signed the entry.
        run_id: the MLflow run that made the version.
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
    signed_by: str | None
    run_id: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> Fitted:
        """Rule by rule, for a terminal."""

        def build(width: int) -> "Table":
            from rich.markup import escape

            how = "promoted by force" if self.forced else "promoted" if self.promoted else "refused"
            title = f"{escape(plain(self.model))} version {self.version}: {how}"
            made = table(width, "rule", "limit", "value", "holds", "", title=title, whole=("holds",))
            for each in self.rulings:
                cells = (each.rule, _shown(each.limit), _shown(each.value), "yes" if each.passed else "no", each.told)
                made.add_row(*(escape(plain(cell)) for cell in cells))
            return made

        return Fitted(build)


def _shown(value: Any) -> str:
    return "not measured" if value is None else shown(value)


def promoted(
    ws: Workspace, model: str, rules: Promote, version: str, *, force: bool = False, reason: str | None = None
) -> Decision:
    """All steps: which version is meant, its proof, the decision. As `number_of`, `prove` and `decide`."""
    number = number_of(ws, model, version)  # once: an alias may be moved while the proof is made
    return decide(ws, model, number, rules, prove(ws, model, number, rules), force=force, reason=reason)


def number_of(ws: Workspace, model: str, version: str) -> str:
    """The version that a number or alias means now: what is proved from here on is what is judged and made champion.

    Raises:
        UnknownVersionError: there is no such version.
        TrackingError: MLflow failed.
    """
    with reading(ws) as client:
        return str(find_version(client, model, version).version)


def prove(ws: Workspace, model: str, number: str, rules: Promote) -> Proof | None:
    """The version's proof, where a rule asks for it.

    Raises:
        InputError, TrackingError: as in verify_version.
    """
    return verify_version(ws, model, number) if rules.proof else None


def decide(
    ws: Workspace,
    model: str,
    number: str,
    rules: Promote,
    proof: Proof | None,
    *,
    force: bool = False,
    reason: str | None = None,
) -> Decision:
    """Judge a version and, where every rule holds or `force` overrides them, make it champion.

    The ledger's entry settles who is champion; alias, tags and artifact follow it. Judged again when another version
    becomes champion meanwhile. Figures come from files that are as they were signed and registered.

    Args:
        ws: the workspace.
        model: registered model.
        number: the version's number.
        rules: what is asked.
        proof: of this version, where a rule asks for it.
        force: promote although a rule about figures does not hold. A failed proof is never overridden.
        reason: why; needed with `force`.

    Raises:
        InputError: there is no such version, it is champion already, there is no reason for the force, or this user's
            key may not promote.
        BrokenLedger, ForeignChampion, SignatureError: the history is not whole, or the version is not what was
            registered; nothing was changed.
        TrackingError: MLflow failed.
    """
    if force and not (reason or "").strip():
        raise InputError('--force needs a reason, which goes to the ledger. Add: --reason "..."')
    rulings: list[Ruling] = []
    with reading(ws) as client:
        ledger = Ledger.open(client, model, ws)
        ledger.check_allowed("promoted", ledger.chain())
        repaired = settle(client, model, ws)
        version = checked_version(client, model, number, ws)
        evidence = evidence_of(version)
        manifest_digest = version.entry.manifest

        def judged(chain: Chain) -> dict[str, Any] | None:
            champion = chain.champion
            if champion == number:
                raise InputError(f"{model} version {number} is the {ALIAS} already.")
            rulings[:] = judge(rules, evidence(None if proof is None else proof.failed, champion, chain))
            passed = all(each.passed for each in rulings)
            record = {"passed": passed, "rules": [each.as_json() for each in rulings]}
            ledger.record("gate", number, manifest_digest, record)
            may_be_forced = force and (proof is None or not proof.failed)
            return {"forced": not passed, "reason": reason} if passed or may_be_forced else None

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
            entry.actor,
            str(version.made.run_id),
        )
        client.log_dict(version.made.run_id, decision.as_json(), f"promotion/entry_{entry.n:06d}.json")
        anchor_ledger(ws, client, model)
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

    with reading(ws) as client:
        done = roll_back(client, model, to, reason, check, ws)
        anchor_ledger(ws, client, model)
        return done


def evidence_of(version: CheckedVersion) -> Callable[[str | None, str | None, Chain], Evidence]:
    """What a version is judged by. Its files are read once; the rest is told, since it may change meanwhile.

    Returns:
        Of the proof (None: not asked for), the champion's number and the ledger: the evidence.

    Raises:
        SignatureError: a record is not what was signed.
    """
    manifest, evaluation, said = (version.record(name) for name in (MANIFEST, EVALUATION, VERSION))
    tasks = version.tasks

    def evidence(proof: str | None, champion: str | None, chain: Chain) -> Evidence:
        ratio = None if champion in (None, version.number) else _ratio(version.model, str(champion), chain)
        return Evidence(manifest, evaluation, tasks, said["git"]["dirty"], proof, ratio)

    return evidence


def _ratio(model: str, champion: str, chain: Chain) -> float:
    """The present champion's perplexity ratio, as it was registered."""
    entry, _ = registration_of(chain, model, champion)
    ratio: float = entry.details["figures"]["ratio"]
    return ratio
