"""How a registered model stands: who is champion, since when, whether that was proved. Repairs and writes nothing."""

from typing import TYPE_CHECKING, Any

from tasks.promotion.champion import ALIAS
from tasks.registry.chain import Chain
from tasks.registry.entry import CROWNINGS, Entry
from tasks.registry.ledger import HEAD, PENDING, Ledger
from tasks.registry.ledger_run import find_model
from tasks.registry.versions import all_versions
from tasks.workspace.folder import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PROOFS = {"verified": True, "failed": False}


def standing(client: "MlflowClient", ws: Workspace, model: str) -> dict[str, Any] | None:
    """What the ledger says of a model's champion and of its newest version.

    Returns:
        {"model", "versions": how many there are, "entries": of the ledger, "champion" and "newest": None or {"version",
        "since", "by", "how": "promoted", "promoted by force" or "rolled back", "method", "pattern", "ratio", "proof":
        None or {"passed", "time"}}, "told": what is wrong with the alias, or None}; of the newest "since" and "by" are
        of its registration, and "how" is what was decided of it, or None. None: there is no such model.

    Raises:
        BrokenLedger: the ledger is not whole.
        TrackingError: MLflow failed.
    """
    registered = find_model(client, model)
    if registered is None:
        return None
    ledger = Ledger.open(client, model, ws)
    chain = ledger.chain(beginning=True)
    ledger.check_heads(chain.entries)
    numbers = [str(made.version) for made in all_versions(client, model) if made.tags.get(HEAD) != PENDING]
    alias, champion = registered.aliases.get(ALIAS), chain.champion
    newest = chain.registered(numbers[0]) if numbers else None
    return {
        "model": model,
        "versions": len(numbers),
        "entries": len(chain.entries),
        "champion": _champion(chain),
        "newest": None if newest is None else _told(chain, newest, _decision(chain, newest.version)),
        "told": _misplaced(None if alias is None else str(alias), champion, numbers),
    }


def _champion(chain: Chain) -> dict[str, Any] | None:
    crowning = next((entry for entry in reversed(chain.entries) if entry.event in CROWNINGS), None)
    return None if crowning is None else _told(chain, crowning, _how(crowning))


def _decision(chain: Chain, version: str) -> str | None:
    decided = (*CROWNINGS, "refused")
    about = [entry for entry in chain.entries if entry.version == version and entry.event in decided]
    return _how(about[-1]) if about else None


def _how(entry: Entry) -> str:
    is_forced = entry.event == "promoted" and entry.details.get("forced")
    return "promoted by force" if is_forced else entry.event.replace("_", " ")


def _told(chain: Chain, entry: Entry, how: str | None) -> dict[str, Any]:
    registration = chain.registered(entry.version)
    said = {} if registration is None else registration.details
    proofs = [each for each in chain.entries if each.version == entry.version and each.event in _PROOFS]
    return {
        "version": entry.version,
        "since": entry.time,
        "by": entry.actor,
        "how": how,
        **{name: said.get(name) for name in ("method", "pattern")},
        "ratio": said.get("figures", {}).get("ratio"),
        "proof": {"passed": _PROOFS[proofs[-1].event], "time": proofs[-1].time} if proofs else None,
    }


def _misplaced(alias: str | None, champion: str | None, numbers: list[str]) -> str | None:
    """What is wrong with the alias, in a line."""
    if alias == champion:
        return None
    if champion is not None and champion not in numbers:
        return f"the champion, version {champion}, was deleted from MLflow: there is none until another is promoted"
    if champion is None:
        return f"the alias {ALIAS!r} is on version {alias}, and nothing was promoted yet: dass history"
    where = "missing" if alias is None else f"on version {alias}"
    return f"the alias {ALIAS!r} is {where}, the ledger's champion is version {champion}: dass history puts it right"
