"""A proof as steps: each one passed, failed, or not taken because of this machine."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dass.errors import UnavailableError
from tasks.registry.timeline import plain
from tasks.registry.tracking import is_outage
from tasks.workspace.tables import Fitted, table

if TYPE_CHECKING:
    from rich.table import Table

_OUTCOMES = {True: "passed", False: "FAILED", None: "not taken"}


@dataclass(frozen=True)
class Step:
    """One step of a proof.

    Attributes:
        name: files, ledger, weights, pattern, configuration or replay.
        passed: None when it could not be taken here, which says nothing of the version.
        told: what was found, or what was missing.
        fault: why it could not be taken.
    """

    name: str
    passed: bool | None
    told: str
    fault: Exception | None = None

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "passed": self.passed, "told": self.told}


@dataclass(frozen=True)
class Proof:
    """All steps.

    Attributes:
        what: which version or folder.
        steps: in order.
    """

    what: str
    steps: list[Step]

    @property
    def failed(self) -> str:
        """Names of the steps that failed, "" when none did."""
        return ", ".join(step.name for step in self.steps if step.passed is False)

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "steps": [step.as_json() for step in self.steps],
            "passed": all(step.passed for step in self.steps),
        }


def take_step(name: str, check: Callable[[], str], folder: Path) -> Step:
    """Take a step, whatever comes of it.

    Args:
        name: the step's.
        check: says what it found, or raises at the first thing that is not as it must be.
        folder: whose files are proved: one that is missing there is damage, elsewhere it is this machine's fault.
    """
    try:
        return Step(name, True, check())
    except Exception as error:  # whatever a damaged file makes a reader raise: what cannot be read is not proved
        from dass.masks.proof import ProofError  # here and below: torch takes seconds, and steps have loaded it

        told = " ".join(_told(error).split())
        if name == "replay" and not isinstance(error, ProofError):  # all that it reads, an earlier step has checked
            return Step(name, None, told, error)
        return Step(name, None, told, error) if _is_fault(error, folder) else Step(name, False, told)


def _told(error: Exception) -> str:
    ours = type(error).__module__.startswith(("dass.", "tasks."))
    return str(error) if ours else f"{type(error).__name__}: {error}"


def _is_fault(error: Exception, folder: Path) -> bool:
    """Whether it lies with this machine, the network or a server: then nothing was learned of the version."""
    import torch

    if is_outage(error) or isinstance(error, (UnavailableError, MemoryError, ImportError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, FileNotFoundError) and error.filename:  # of the version's own files: it is damaged
        return not Path(os.fsdecode(error.filename)).is_relative_to(folder)
    return isinstance(error, OSError) or "(os error " in str(error)  # safetensors reads in Rust


def proof_table(proof: Proof) -> Fitted:
    """Step by step, for a terminal."""

    def build(width: int) -> "Table":
        from rich.markup import escape

        title = f"{escape(plain(proof.what))}: {'not proved' if proof.failed else 'proved'}"
        made = table(width, "step", "", "what was found", title=title, whole=("step", ""))
        for step in proof.steps:
            made.add_row(step.name, _OUTCOMES[step.passed], escape(plain(step.told)))
        return made

    return Fitted(build)
