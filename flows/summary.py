"""What a run ends with: one table, and the commands that open what was made."""

import os
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.registry.result import scores_told, tasks_told
from tasks.registry.tracking import tracking_uri as full_tracking_uri
from tasks.workspace.folder import Workspace
from tasks.workspace.redaction import shown_address
from tasks.workspace.tables import Fitted, table

if TYPE_CHECKING:
    from rich.table import Table

    from tasks.registry.registration import Registration


@dataclass(frozen=True)
class Stopped:
    """What a run left that was to stop behind a stage.

    Attributes:
        until: the stage.
        stages: stage -> "ran", "restored" or "unchanged".
        seconds: stage -> seconds in this run.
    """

    until: str
    stages: dict[str, str]
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def table(self, took: float) -> Fitted:
        """A row a stage, for the terminal; `took`: seconds of the whole command."""

        def build(width: int) -> "Table":
            title = f"Stopped behind {self.until}: nothing was registered"
            made = table(width, "stage", "what", "seconds", title=title, right=("seconds",))
            for stage, outcome in self.stages.items():
                made.add_row(stage, outcome, f"{self.seconds[stage]:.1f}")
            made.add_row("in all", "", f"{took:.1f}")
            return made

        return Fitted(build)


@dataclass(frozen=True)
class Summary:
    """The result of one run.

    Attributes:
        method, pattern, update: what was asked of `prune`.
        dense: perplexity of the dense model.
        pruned: perplexity of the pruned model.
        ratio: pruned / dense.
        interval: of the ratio: low, high and how likely it is between them; None for a single window.
        divergence: {"kl", "top1_agreement", "top5_overlap"} of pruned from dense; None where it could not be had.
        texts: name -> ratio on each of evaluate.texts.
        overlap: text -> share of its 13-grams that the calibration windows hold.
        verdicts: why the figures cannot be taken at their word.
        context_length: tokens a window, without which a perplexity says little.
        tokens: predicted tokens.
        sparsity: shares of zeros in the pruned checkpoint, {"mlp", "model"}.
        auto: what `method: auto` chose and how far ahead it is; None: a method was named.
        tasks: metrics/tasks.json.
        stages: stage -> "ran", "restored" or "unchanged".
        seconds: stage -> seconds in this run.
        model: registered model's name.
        version: registered version.
        aliases: what the version is called in the registry.
        created: False when this very result was registered before.
        run_id: MLflow run.
        tracking_uri: where MLflow keeps it.
        signed_by: the key that signed the version.
    """

    method: str
    pattern: str
    update: str
    dense: float
    pruned: float
    ratio: float
    interval: tuple[float, float, float] | None
    divergence: dict[str, float] | None
    texts: dict[str, float]
    overlap: dict[str, float | None]
    verdicts: list[dict[str, str]]
    context_length: int
    tokens: int
    sparsity: dict[str, float]
    auto: str | None
    tasks: dict[str, Any]
    stages: dict[str, str]
    seconds: dict[str, float]
    model: str
    version: str
    aliases: list[str]
    created: bool
    run_id: str
    tracking_uri: str
    signed_by: str

    @classmethod
    def of(
        cls,
        evaluation: dict[str, Any],
        tasks: dict[str, Any],
        manifest: dict[str, Any],
        registration: "Registration",
        aliases: list[str],
        stages: dict[str, str],
        seconds: dict[str, float],
    ) -> "Summary":
        """Put together from the metrics, the masks' manifest and what the registry answered."""
        interval, divergence = evaluation["interval"], evaluation["divergence"]
        asked = manifest["settings"]["prune"]
        return cls(
            method=asked["method"],
            pattern=asked["pattern"],
            update=asked["update"],
            dense=evaluation["dense"]["perplexity"],
            pruned=evaluation["pruned"]["perplexity"],
            ratio=evaluation["ratio"],
            interval=None if interval is None else (*interval["ratio"], interval["level"]),
            divergence=divergence
            and {key: value for key, value in divergence.items() if not isinstance(value, list) and key != "tokens"},
            texts={name: text["ratio"] for name, text in evaluation["texts"].items()},
            overlap={
                name: each["share"] for name, each in {**evaluation["overlap"], **tasks.get("overlap", {})}.items()
            },
            verdicts=[*evaluation["verdicts"], *tasks.get("verdicts", [])],
            context_length=evaluation["context_length"],
            tokens=evaluation["tokens"],
            sparsity=evaluation["sparsity"],
            auto=scores_told(manifest),
            tasks=tasks,
            stages=stages,
            seconds=seconds,
            model=registration.model,
            version=str(registration.version),
            aliases=aliases,
            created=registration.created,
            run_id=registration.run_id,
            tracking_uri=registration.tracking_uri,
            signed_by=registration.signed_by,
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def table(self, took: float) -> Fitted:
        """One table for the terminal.

        Args:
            took: seconds of the whole command.
        """
        return Fitted(lambda width: self._table(width, took))

    def _table(self, width: int, took: float) -> "Table":
        made = table(width, "", "", title="Result")
        ran = [f"{stage} {self.seconds[stage]:.1f}" for stage, outcome in self.stages.items() if outcome == "ran"]
        made.add_row("pruned by", f"{self.method}, pattern {self.pattern}, update {self.update}")
        made.add_row("dense perplexity", f"{self.dense:.3f}")
        made.add_row("pruned perplexity", f"{self.pruned:.3f}")
        between = ""
        if self.interval is not None:
            low, high, level = self.interval
            between = f" ({level:.0%} interval {low:.3f} to {high:.3f})"
        made.add_row("ratio", f"{self.ratio:.3f}{between}")
        for name, ratio in self.texts.items():
            made.add_row(f"ratio on {name}", f"{ratio:.3f}")
        if self.divergence is not None:
            kl, top1, top5 = (self.divergence[key] for key in ("kl", "top1_agreement", "top5_overlap"))
            made.add_row("moved from dense", f"KL {kl:.3f} nats, same top token {top1:.1%}, of top five {top5:.1%}")
        made.add_row("test text in calibration", ", ".join(map(_overlap, self.overlap.items())))
        made.add_row("measured on", f"{self.tokens:,} tokens, context length {self.context_length}")
        for name, told in tasks_told(self.tasks).items():
            made.add_row(name, told)
        if self.auto is not None:
            made.add_row("auto chose", self.auto)
        made.add_row("MLP sparsity", f"{self.sparsity['mlp']:.2%}")
        made.add_row("model sparsity", f"{self.sparsity['model']:.2%}")
        made.add_row("seconds", f"{took:.1f}" + (f" (stages: {', '.join(ran)})" if ran else " (stages: unchanged)"))
        known = "" if self.created else " (was registered before)"
        called = f", {' and '.join(self.aliases)}" if self.aliases else ", no alias"
        made.add_row("registered", f"{self.model} version {self.version}{called}{known}")
        made.add_row("signed by", self.signed_by)
        for each in self.verdicts:
            made.add_row(each["verdict"], each["told"])
        return made


def _overlap(measured: tuple[str, float | None]) -> str:
    name, share = measured
    told = "not measured" if share is None else f"{share:.1%} of its 13-grams"
    return told if name == "evaluation" else f"{name} {told}"


def opening_commands(ws: Workspace, tracking_uri: str) -> dict[str, str]:
    """The commands that open the MLflow UI, the Prefect UI and the result itself."""
    api = os.environ.get("PREFECT_API_URL")
    # Another database's address is shown without its password, which the shell still has.
    named = os.environ.get("MLFLOW_TRACKING_URI", "").partition(":")[0] not in ("", "sqlite")
    store = '"$MLFLOW_TRACKING_URI"' if named else shlex.quote(full_tracking_uri(ws))
    mlflow = f"MLFLOW_DISABLE_TELEMETRY=true {_tool('mlflow')} ui --backend-store-uri {store}"
    of_ws = "" if Path.cwd() == ws.root else f" --workspace {shlex.quote(str(ws.root))}"
    return {
        "MLflow UI": tracking_uri if tracking_uri.startswith("http") else mlflow,
        "Prefect UI": shown_address(api).removesuffix("/api") if api else f"{_tool('dass')} ui{of_ws}",
        "this result": f"{_tool('dass')} show{of_ws}",
        "report": str(ws.report),
    }


def _tool(name: str) -> str:
    """The short name when the shell would find this environment's own tool, else the way that works everywhere."""
    own = Path(sys.executable).parent / name
    found = shutil.which(name)
    if found and own.exists() and Path(found).samefile(own):
        return name
    return f"{shlex.quote(sys.executable)} -P -m {'flows' if name == 'dass' else name}"
