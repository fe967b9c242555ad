"""The newest head of a ledger in git: refs/dass/ledger/MODEL of the workspace's repository.

A chain of commits, each with one file a store that says how the ledger began and what its last entry was. Whoever has
fetched it sees a ledger that was cut or rewritten afterwards:

    git fetch origin 'refs/dass/*:refs/dass/*'
"""

import json
import logging
from collections.abc import Callable
from urllib.parse import quote

from dass.errors import InputError
from dass.files import canonical_json, digest_of
from tasks.registry.chain import Chain
from tasks.registry.tracking import is_embedded, tracking_uri
from tasks.registry.trust import Seen, read_keys
from tasks.versioning import git
from tasks.workspace.folder import Workspace
from tasks.workspace.redaction import shown_address

logger = logging.getLogger("dass")

PREFIX = "refs/dass/ledger/"
_TRIES = 10


def ref_of(model: str) -> str:
    """The ref of a model's ledger."""
    return PREFIX + quote(model, safe="").replace(".", "%2E").replace("~", "%7E")  # git takes neither everywhere


def check_anchor(ws: Workspace, model: str, store: str, read: Callable[[], Chain]) -> Chain:
    """Compare a ledger with what the workspace's repository remembers of it.

    Args:
        ws, model, store: which ledger, remembered where.
        read: reads the ledger; called behind what is remembered, since others write both meanwhile.

    Returns:
        The ledger, as it was read.

    Raises:
        BrokenLedger: it was cut, rewritten or exchanged since.
        InputError: what is remembered cannot be read, or git refuses.
    """
    seen = anchored(ws, model, store)
    chain = read()
    if seen is not None:
        seen.check(chain, f"{ref_of(model)} in git")
    return chain


def anchored(ws: Workspace, model: str, store: str) -> Seen | None:
    """What the workspace's repository remembers of a ledger."""
    ref = ref_of(model)
    text = git.blob(ws.root, f"{ref}:{_name(store)}")
    if text is None:
        return None
    try:
        return Seen.read(json.loads(text), ref)
    except ValueError:
        raise InputError(f"{ref} in git is damaged: it holds no JSON") from None


def anchor(ws: Workspace, model: str, store: str, chain: Chain) -> None:
    """Put a ledger's head into git, signed as the user's commits are.

    A workspace with dass.keys, whose team has said who may sign, pushes it where its branch is pushed. The entry is
    written already, so what fails here is told and loses nothing: the next command brings it along. Outside git nothing
    is done.
    """
    if chain.root is None or not git.in_work_tree(ws.root):
        return
    ref, seen = ref_of(model), Seen.of(model, store, chain)
    try:
        if not any(_is_put(ws, ref, seen, chain.entries[-1].event) for _ in range(_TRIES)):
            logger.warning(f"The head of the ledger is not in {ref} yet: others write it all the time")
    except InputError as error:
        logger.warning(f"The head of the ledger is not in {ref} yet: {error}")
        return
    if read_keys(ws) is None:
        return
    failed = git.push(ws.root, ref)
    if failed:
        logger.warning(f"The head of the ledger stays in this repository for now: git push said {failed}")


def _is_put(ws: Workspace, ref: str, seen: Seen, event: str) -> bool:
    """Put a head into git, unless a later one is there; whether one of both is there now."""
    there = anchored(ws, seen.model, seen.store)
    if there is not None and there.root == seen.root and there.n >= seen.n:
        return True
    said = f"Ledger of {seen.model}: entry {seen.n}\n\n{event}"
    return git.commit_file(ws.root, ref, _name(seen.store), canonical_json(seen.as_json()) + "\n", said)


def git_store(ws: Workspace) -> str:
    """Which store a workspace uses, in words that are true in every clone: its own, or the address of another."""
    if is_embedded(ws):
        return f"embedded in {git.prefix(ws.root)}"
    return shown_address(tracking_uri(ws)).rstrip("/")


def _name(store: str) -> str:
    return f"{digest_of(store)[:16]}.json"
