"""From Prefect's run to MLflow's and back: each names the other."""

import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING
from urllib.parse import quote

from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows.heard import if_heard
from flows.prefect_api import OWN
from tasks.registry.experiment import experiment_page
from tasks.workspace.log_format import log_attributes
from tasks.workspace.redaction import redacted, shown_address

if TYPE_CHECKING:
    from tasks.registry.registration import Registration


def flow_run_facts() -> dict[str, str] | None:
    """Prefect's run that this is part of: "id", "name", and "url" where its server outlives the command; None: none is.

    A server of our own has another address each time: `dass ui` shows its runs.
    """
    if flow_run.id is None:
        return None
    facts = {"id": str(flow_run.id), "name": str(flow_run.name)}
    if OWN not in os.environ and flow_run.ui_url:
        facts["url"] = shown_address(str(flow_run.ui_url))
    return facts


def log_of(model: str, version: str | None = None) -> AbstractContextManager[None]:
    """While entered, what is logged says which flow run, model and version it is of."""
    run = None if flow_run.id is None else str(flow_run.id)
    return log_attributes({"run.id": run, "model": model, "version": version})


@if_heard
def link_to_mlflow(registered: "Registration") -> None:
    """Leave an artifact with the flow run that says which version it made, and where MLflow shows it."""
    address = redacted(registered.tracking_uri)
    lines = [
        f"- registered model {_code(registered.model)}, version {_code(registered.version)}",
        f"- MLflow run {_code(registered.run_id)} in {_code(address)}",
        f"- signed by {_code(registered.signed_by)}",
        f"- the page: artifact {_code('report.html')} of that run, or {_code(f'dass report {registered.version}')}",
    ]
    if address.startswith(("http://", "https://")):
        page, table = address.rstrip("/"), experiment_page(address, registered.experiment_id)
        run = f"{page}/#/experiments/{registered.experiment_id}/runs/{registered.run_id}"
        version = f"{page}/#/models/{quote(registered.model, safe='')}/versions/{registered.version}"
        report = f"{run}/artifacts/report.html"
        links = {"the run": run, "the version": version, "the page": report, "all runs": table}
        lines.insert(0, f"- in MLflow: {', '.join(f'[{name}](<{link}>)' for name, link in links.items())}")
    create_markdown_artifact("\n".join(lines), key="mlflow", description="The version that this run registered")


def _code(text: str) -> str:
    """A text as Markdown code, whatever is in it."""
    return "`" + text.replace("`", "'").replace("\n", " ") + "`"
