"""Drawing the page: into a file, and at the end of a run also as an artifact of the version's MLflow run."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.files import complete_file
from tasks.registry.registration import Registration
from tasks.registry.show import show
from tasks.registry.tracking import tracking
from tasks.report.facts import Facts, read_facts
from tasks.report.file import NAME, check_replaceable
from tasks.report.page import render
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Promote, load_settings


@dataclass(frozen=True)
class Drawn:
    """A page that was drawn.

    Attributes:
        model, version: of what.
        file: where it is.
        size: in bytes.
    """

    model: str
    version: str
    file: str
    size: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def draw(ws: Workspace, wanted: str | None = None, output: Path | None = None) -> Drawn:
    """Draw the page of a version into a file.

    Args:
        ws: the workspace; its `promote` rules are the ones that are judged.
        wanted: number or alias; None is the version that is the workspace's result.
        output: the file; None is plots/report.html, and for a version that was named plots/report_vN.html.

    Raises:
        InputError: there is no such version, or the result is not registered; the file is there and is no such page.
        BrokenLedger, ForeignChampion, SignatureError: the version is not what the ledger says.
        TrackingError: MLflow failed.
        OSError: the file cannot be written.
    """
    if output is not None:
        check_replaceable(output)
    settings = load_settings(ws.params)
    facts = read_facts(ws, settings.register_.model, wanted or _registered_result(ws), settings.promote)
    if output is None:
        output = ws.report if wanted is None else ws.report.with_stem(f"{ws.report.stem}_v{facts.number}")
        check_replaceable(output)
    return _written(facts, render(facts), output)


def draw_of_run(ws: Workspace, registered: Registration, rules: Promote) -> Drawn:
    """Draw the page of what a run registered into plots/report.html, and give it to the MLflow run.

    Raises:
        as `draw`.
    """
    check_replaceable(ws.report)
    facts = read_facts(ws, registered.model, registered.version, rules)
    page = render(facts)
    with tracking(ws) as client:  # the file comes last: where it is, the MLflow run has it too
        client.log_text(facts.run_id, page, NAME)
    return _written(facts, page, ws.report)


def _registered_result(ws: Workspace) -> str:
    registered = show(ws)["registered"]
    if registered is None:
        raise InputError("The workspace's result is not registered, and the page shows versions. Run: dass run")
    version: str = registered["version"]
    return version


def _written(facts: Facts, page: str, path: Path) -> Drawn:
    with complete_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return Drawn(facts.model, facts.number, str(path), len(page.encode()))
