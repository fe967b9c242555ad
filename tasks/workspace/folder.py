"""Where everything of a workspace lives. A workspace is a folder with params.yaml, dvc.yaml and .dvc."""

from dataclasses import dataclass
from pathlib import Path

from dass.errors import InputError


@dataclass(frozen=True)
class Workspace:
    """The paths of one workspace. Makes nothing and reads nothing.

    Attributes:
        root: the folder.
        once: for one run, the folder whose params.yaml and dass.lock.json take the place of the workspace's own.
        point: for one point of a sweep, the folder that takes what is made of the workspace's base, calibration and
            dense evaluation, in the place of the workspace.
        keeper: for a checkout, the folder of the workspace that it belongs to, which keeps what is registered without
            a server.
    """

    root: Path
    once: Path | None = None
    point: Path | None = None
    keeper: Path | None = None

    @classmethod
    def at(cls, folder: str | Path) -> "Workspace":
        """The workspace in `folder`.

        Raises:
            InputError: there is none. The message says how to make one.
        """
        root = Path(folder).resolve()
        for needed in ("params.yaml", "dvc.yaml", ".dvc"):
            if not (root / needed).exists():
                raise InputError(f"{root} is not a workspace: it has no {needed}. Run: dass init {folder}")
        return cls(root)

    @property
    def params(self) -> Path:
        """The settings, written by people."""
        return (self.once or self.root) / "params.yaml"

    @property
    def lock_file(self) -> Path:
        """What the settings resolved to: digests of sources and code. Written by `dass`, tracked in git."""
        return (self.once or self.root) / "dass.lock.json"

    @property
    def registry(self) -> Path:
        """The folder of mlflow.db and mlartifacts, which MLflow has without a server: a checkout's keeper."""
        return self.keeper or self.root

    @property
    def base(self) -> Path:
        """The dense checkpoint: plain safetensors, config, tokenizer, source.json."""
        return self.root / "artifacts" / "base"

    @property
    def calibration(self) -> Path:
        """Calibration windows: tokens.safetensors and calibration.json."""
        return self.root / "artifacts" / "calibration"

    @property
    def masks(self) -> Path:
        """Keep masks, statistics and manifest.json."""
        return self._made_in / "artifacts" / "masks"

    @property
    def recovered(self) -> Path:
        """What training behind pruning changed: recovery.json, and updates/ where it was on."""
        return self._made_in / "artifacts" / "recovered"

    @property
    def pruned(self) -> Path:
        """The pruned checkpoint: base × masks."""
        return self._made_in / "artifacts" / "pruned"

    @property
    def evaluation(self) -> Path:
        """Held-out windows and what the dense model scores on them."""
        return self.root / "artifacts" / "evaluation"

    @property
    def answers(self) -> Path:
        """What both models answer to each document of each zero-shot task: answers.parquet."""
        return self._made_in / "artifacts" / "answers"

    @property
    def measures(self) -> Path:
        """What the pruned model scores on them, token by token."""
        return self._made_in / "artifacts" / "measures"

    @property
    def metrics(self) -> Path:
        """Small JSON results, tracked in git."""
        return self._made_in / "metrics"

    @property
    def plots(self) -> Path:
        """PNG plots, and the page."""
        return self._made_in / "plots"

    @property
    def report(self) -> Path:
        """The page about the version that the last run registered. Of the registry, so no stage makes it."""
        return self.plots / "report.html"

    @property
    def private(self) -> Path:
        """Working state that is never versioned: locks, finished layers of a running prune, Prefect's home."""
        return self.root / ".dass"

    @property
    def own(self) -> list[Path]:
        """Folders that the stages, DVC and MLflow fill, replace and clear: nobody else's place."""
        return [self.base.parent, self.private, self.root / ".dvc", self.root / "mlartifacts"]

    @property
    def made(self) -> list[Path]:
        """Everything the stages make, and where results are registered without a server."""
        folders = [
            *(self.base, self.calibration, self.masks, self.recovered, self.pruned),
            *(self.evaluation, self.measures, self.answers),
        ]
        measured = (self.metrics / f"{name}.json" for name in ("evaluation", "tasks", "summary", "layers", "norms"))
        files = [*measured, self.plots / "layers.png", self.plots / "norms.png"]
        return [*folders, *files, self.report, self.root / "mlflow.db", self.root / "mlartifacts", self.private]

    @property
    def work(self) -> Path:
        """One folder per fingerprint, holding the finished layers of that run."""
        return (self.point or self.private) / "work"

    @property
    def sweeps(self) -> Path:
        """One folder per sweep, and beside them what points share: masks, figures, records. A checkout's are those of
        the workspace that it belongs to."""
        return self.registry / ".dass" / "sweeps"

    @property
    def batches(self) -> Path:
        """Answers to zero-shot tasks, batch by batch, until all of them are there."""
        return self.private / "tasks"

    @property
    def _made_in(self) -> Path:
        return self.point or self.root

    @property
    def statistics(self) -> Path:
        """One folder per fingerprint, holding statistics of the dense model that many masks are made from."""
        return self.private / "statistics"
