"""What the stages made, as it is registered: read back from the workspace, with the digest that equal results share."""

from dataclasses import dataclass
from typing import Any

from dass.engine.choice import Choice
from dass.errors import InputError
from dass.files import digest_of, read_json, sha256_file
from tasks.evaluation.task_record import all_entries, named_entries
from tasks.workspace.flat import flat
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings


@dataclass(frozen=True)
class Result:
    """What the stages made, read back from the workspace.

    Attributes:
        manifest: artifacts/masks/manifest.json.
        manifest_digest: sha256 of that file's bytes.
        recovery: artifacts/recovered/recovery.json.
        evaluation: metrics/evaluation.json.
        tasks: metrics/tasks.json.
        calibration_set: artifacts/calibration/calibration.json.
        evaluation_set: artifacts/evaluation/dense.json.
        settings: all settings but `register` and `promote`, which change nothing in the result.
        artifact: what the version holds, "checkpoint" or "masks".
    """

    manifest: dict[str, Any]
    manifest_digest: str
    recovery: dict[str, Any]
    evaluation: dict[str, Any]
    tasks: dict[str, Any]
    calibration_set: dict[str, Any]
    evaluation_set: dict[str, Any]
    settings: dict[str, Any]
    artifact: str

    @classmethod
    def read(cls, workspace: Workspace, settings: Settings) -> "Result":
        """Raises InputError: a stage has not run yet."""
        needed = {
            "manifest": workspace.masks / "manifest.json",
            "recovery": workspace.recovered / "recovery.json",
            "evaluation": workspace.metrics / "evaluation.json",
            "tasks": workspace.metrics / "tasks.json",
            "calibration_set": workspace.calibration / "calibration.json",
            "evaluation_set": workspace.evaluation / "dense.json",
        }
        drawn = [workspace.plots / "layers.png", workspace.plots / "norms.png"]
        masks = [workspace.masks / "masks.safetensors", workspace.masks / "statistics.safetensors"]
        for path in [*needed.values(), *masks, workspace.pruned / "config.json", *drawn]:
            if not path.is_file():
                raise InputError(f"No {path}: there is no complete result to register. Run: dass run")
        return cls(
            **{name: read_json(path) for name, path in needed.items()},
            manifest_digest=sha256_file(needed["manifest"]),
            settings=settings.model_dump(mode="json", by_alias=True, exclude={"register_", "promote"}),
            artifact=settings.register_.artifact,
        )

    @property
    def digest(self) -> str:
        """Equal for equal results: what idempotent registration goes by."""
        return digest_of(
            {
                "masks": self.manifest["masks"]["digest"],
                "base": self.manifest["base"]["digest"],
                "recovery": (self.recovery.get("updates") or {}).get("digest"),
                "evaluation": [self.evaluation_set["digest"], self.evaluation],
                "tasks": self.tasks,
                "settings": self.settings,
                "artifact": self.artifact,
            }
        )

    @property
    def figures(self) -> dict[str, float]:
        """Every number of metrics/evaluation.json under a dotted name; those of tasks and recovery behind theirs."""
        trained = {key: self.recovery.get(key) for key in ("steps", "best_step", "tokens", "loss", "held_back")}
        values = flat({**self.evaluation, "tasks": task_figures(self.tasks), "recover": trained})
        return {name: value for name, value in values.items() if type(value) in (int, float)}

    @property
    def series(self) -> dict[str, list[tuple[int, float]]]:
        """What metrics/evaluation.json has along bands (by_...): a dotted name -> where each begins, and the figure.

        Recovery's losses are along its steps.
        """
        found: dict[str, list[tuple[int, float]]] = {}
        for name, bands in flat(self.evaluation).items():
            if ".by_" in name:
                for band in bands:
                    for key, value in band.items():
                        if key not in ("from", "to") and type(value) in (int, float):
                            found.setdefault(f"{name}.{key}", []).append((band["from"], value))
        for entry in self.recovery.get("history", []):
            for key, value in entry.items():
                if key != "step":
                    found.setdefault(f"recover.step.{key}", []).append((entry["step"], value))
        return found


def task_figures(tasks: dict[str, Any]) -> dict[str, Any]:
    """What is measured of metrics/tasks.json: of each task both models' metrics and their difference, and the means."""
    kept = ("documents", "dense", "pruned", "difference")
    figures = {name: {key: entry[key] for key in kept} for name, entry in all_entries(tasks).items()}
    if mean := tasks.get("mean"):
        figures |= {"mean": mean["pruned"], "mean_dense": mean["dense"]}
    return figures


def scores_told(manifest: dict[str, Any]) -> str | None:
    """What `method: auto` has given the layers, and how far ahead that is; None: a method was named."""
    auto = manifest["auto"]
    return None if auto is None else Choice.of(auto).told


def layer_scores(manifest: dict[str, Any]) -> list[str]:
    """What `method: auto` has given each layer; empty: a method was named."""
    auto = manifest["auto"]
    return [] if auto is None else [str(score) for score in Choice.of(auto).scores]


def tasks_told(tasks: dict[str, Any]) -> dict[str, str]:
    """Task -> what both models score on it, in a few words."""
    told = {}
    for name, entry in named_entries(tasks).items():
        if metric := entry["metric"]:
            between = entry["difference"][metric]
            low, high = between["interval"]
            told[name] = (
                f"{entry['dense'][metric]:.4f} -> {entry['pruned'][metric]:.4f} {metric} "
                f"(95 % of the change: {low:+.4f} to {high:+.4f}), {entry['documents']:,} documents"
            )
    return told
