"""`dass publish`: a version on the hub, once it is proved.

First all that is checked, then the commit, the tag behind it, the ledger's entry last: who finds the tag finds every
file, and what was interrupted is gone on with by the same command.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.masks.proof import ProofError
from tasks.promotion.verification import verify_version
from tasks.registry.checked import CheckedVersion, checked_version
from tasks.registry.ledger import Ledger
from tasks.registry.ledger_run import write_twice
from tasks.registry.publishing import anchor_ledger
from tasks.registry.tracking import tracking
from tasks.release.repository import Repository, State
from tasks.release.shipped import shipped
from tasks.workspace.folder import Workspace

logger = logging.getLogger("dass")

TAG = "published"
"""The version's tag that says where it was published last. Nothing reads it but people."""


@dataclass(frozen=True)
class Published:
    """What publishing did, or would do.

    Attributes:
        model, version: what.
        repo, endpoint: where.
        revision: the tag it has there.
        commit: what that names; None: nothing was published yet (a dry run).
        outcome: "published", "was there" or "dry run".
        private: whether the repository is, or would be.
        files: name -> bytes, everything that the revision holds.
        sent: names of those that were, or would be, sent: the others are there.
        removed: names of files of main that are no part of the version.
        entry: number of the ledger's entry that records it; None: a dry run.
    """

    model: str
    version: str
    repo: str
    endpoint: str
    revision: str
    commit: str | None
    outcome: str
    private: bool
    files: dict[str, int]
    sent: list[str]
    removed: list[str]
    entry: int | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """The same for people."""
        size, whole = sum(self.files[name] for name in self.sent), sum(self.files.values())
        seen = "private" if self.private else "public"
        where = f"{self.repo}@{self.revision} ({seen}, {self.endpoint})"
        if self.outcome == "dry run":
            kept = set(self.files) - set(self.sent)
            files = [f"  {name}  {self.files[name]:,} bytes" for name in self.sent]
            gone = [f"  {name}  removed from main" for name in self.removed]
            would = f"would send {len(self.sent)} files, {size:,} bytes; {len(kept)} are there"
            return [f"{self.model} version {self.version} to {where}: {would}.", *files, *gone]
        done = "was there already" if self.outcome == "was there" else f"{size:,} of {whole:,} bytes sent"
        return [
            f"{self.model} version {self.version} is {where}: {done} (ledger entry {self.entry}).",
            f'Load it: AutoModelForCausalLM.from_pretrained("{self.repo}", revision="{self.revision}")',
        ]


def publish(
    ws: Workspace,
    model: str,
    wanted: str,
    repo: str,
    *,
    revision: str | None = None,
    public: bool = False,
    dry_run: bool = False,
) -> Published:
    """Publish a version: prove it, put its files on the repository's main branch, tag that commit, record it.

    Args:
        ws: the workspace.
        model: registered model.
        wanted: the version's number or alias.
        repo: org/name; made where there is none, private.
        revision: the tag; None: v and the version's number.
        public: the repository may be seen by everybody.
        dry_run: look only.

    Raises:
        InputError: there is no such version, the login may not, the repository is public and `public` was not said,
            the revision holds other bytes, or this user's key may not publish.
        ProofError: the version's proof failed. Nothing was sent.
        SignatureError, BrokenLedger, ForeignChampion: the version is not what was registered.
        InfrastructureError: the hub, or MLflow, gave out. The same command goes on.
    """
    there = Repository(repo)
    with tracking(ws) as client:
        found = checked_version(client, model, wanted, ws)
        number, ledger = found.number, Ledger.open(client, model, ws)
        ledger.check_allowed("published", found.chain)
    revision = revision or f"v{number}"
    state = there.state(revision)
    _check_visibility(there, state, public)
    _prove(ws, model, number)
    with tracking(ws) as client:
        version = checked_version(client, model, number, ws)
        with shipped(ws, version) as files:
            sent, removed = _differences(there, state, files, revision)
            sizes = {name: path.stat().st_size for name, path in sorted(files.items())}
            private = not public if state.private is None else state.private

            def done(outcome: str, commit: str | None, entry: int | None) -> Published:
                return Published(
                    *(model, number, repo, there.address, revision, commit, outcome, private, sizes),
                    *(sent, removed, entry),
                )

            if dry_run:
                return done("dry run", state.tagged, None)
            commit = state.tagged or _put(there, state, files, sent, removed, revision, version, private)
        details = {"repo": repo, "endpoint": there.address, "revision": revision, "commit": commit}
        entry = _record(ledger, version, details)
        told = json.dumps({**details, "entry": entry})
        write_twice(lambda: client.set_model_version_tag(model, number, TAG, told))
        anchor_ledger(ws, client, model)
        return done("was there" if state.tagged else "published", commit, entry)


def _check_visibility(there: Repository, state: State, public: bool) -> None:
    if state.private is False and not public:
        raise InputError(f"{there.name} is public, and publishing is private by default. If everybody may: --public")
    if state.private and public:
        raise InputError(
            f"{there.name} is private: --public makes a new repository public, and changes none. Change it on the hub, "
            "or leave --public out."
        )


def _prove(ws: Workspace, model: str, number: str) -> None:
    proof = verify_version(ws, model, number)
    if proof.failed:
        told = next(step.told for step in proof.steps if step.passed is False)
        raise ProofError(f"{model} version {number} is not proved ({proof.failed}: {told}); nothing was published.")


def _differences(
    there: Repository, state: State, files: Mapping[str, Path], revision: str
) -> tuple[list[str], list[str]]:
    """What has to be sent and removed so that main holds the version.

    Raises:
        InputError: the revision is there, and holds something else.
    """
    if state.tagged is not None:
        other, surplus = there.differing(files, state.tagged)
        if other or surplus:
            first = f"{other[0]} differs" if other else f"{surplus[0]} is no file of the version"
            raise InputError(
                f"{there.name} has a revision {revision} with other bytes ({first}): a revision that was published "
                "stays as it is. Name another one: --revision"
            )
        return [], []
    if state.head is None:
        return sorted(files), []
    return there.differing(files, state.head)


def _put(
    there: Repository,
    state: State,
    files: Mapping[str, Path],
    sent: list[str],
    removed: list[str],
    revision: str,
    version: CheckedVersion,
    private: bool,
) -> str:
    """Make main hold the version, and tag it.

    Returns:
        The commit.
    """
    if state.private is None:
        there.create(private)
        state = there.state(revision)
    commit = state.head
    logger.info("publishing %s to %s: %d files", version.told, there.name, len(sent))
    if commit is None or sent or removed:
        message = f"{version.told}, registration {version.entry.details['registration'][:12]}"
        commit = there.commit({name: files[name] for name in sent}, removed, state.head, message)
    there.tag(revision, commit, version.told)
    return commit


def _record(ledger: Ledger, version: CheckedVersion, details: dict[str, Any]) -> int:
    """The number of the ledger's entry that says so: the one that is there, or a new one."""
    for entry in ledger.entries():
        if (entry.event, entry.version) == ("published", version.number) and entry.details == details:
            return entry.n
    return ledger.record("published", version.number, version.entry.manifest, details).n
