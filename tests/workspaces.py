"""A tiny workspace in which every stage has run, made by the stages themselves."""

import shutil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tasks.calibration import cache_windows
from tasks.evaluation.stages import evaluate_dense, evaluate_pruned
from tasks.evaluation.zero_shot import evaluate_tasks
from tasks.plots import draw_plots
from tasks.pruning.stages import materialize, prune
from tasks.recovery.stages import recover
from tasks.sources.base import fetch_base
from tasks.versioning.pins import refresh_pins
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, load_settings
from tests.models import save_tiny_checkpoint, tiny_text

STAGES = (
    *(fetch_base, cache_windows, evaluate_dense, prune, recover, materialize),
    *(evaluate_pruned, evaluate_tasks, draw_plots),
)


def tiny_settings(**changes: Any) -> dict[str, Any]:
    """What params.yaml holds; `changes` are "section.key" = value, with a double underscore for the dot."""
    values: dict[str, Any] = {
        "sources": {
            "model": {"uri": "./model"},
            "calibration": {"uri": "./text.txt"},
            "evaluation": {"uri": "./held_out.txt"},
        },
        "calibration": {"samples": 6, "sequence_length": 32, "seed": 0},
        "prune": {"method": "dass", "pattern": "unstructured", "sparsity": 0.5, "alpha": 0.5},
        "engine": {"device": "cpu"},
        "evaluate": {"samples": 5, "sequence_length": 32},
        "register": {"model": "tiny", "experiment": "tests"},
    }
    for name, value in changes.items():
        section, key = name.split("__")
        values.setdefault(section, {})[key] = value
    return values


def start_workspace(root: Path, family: str = "llama", **changes: Any) -> tuple[Workspace, Settings]:
    """A folder with sources and settings; no stage has run."""
    workspace = Workspace(root)
    save_tiny_checkpoint(root / "model", family)
    text = tiny_text()
    (root / "text.txt").write_text(text[: len(text) // 2], encoding="utf-8")
    (root / "held_out.txt").write_text(text[len(text) // 2 :], encoding="utf-8")
    return workspace, change_settings(workspace, **changes)


def change_settings(workspace: Workspace, **changes: Any) -> Settings:
    """Write params.yaml and dass.lock.json anew."""
    with workspace.params.open("w", encoding="utf-8") as file:
        YAML().dump(tiny_settings(**changes), file)
    settings = load_settings(workspace.params)
    refresh_pins(workspace, settings)
    return settings


def finish_workspace(root: Path, family: str = "llama", **changes: Any) -> tuple[Workspace, Settings]:
    """A folder in which every stage has run."""
    workspace, settings = start_workspace(root, family, **changes)
    for stage in STAGES:
        stage(workspace, settings)
    return workspace, settings


def prune_again(workspace: Workspace, **changes: Any) -> Settings:
    """Change settings of a finished workspace, from section `prune` on, and run the stages that read them."""
    settings = change_settings(workspace, **changes)
    for stage in STAGES[STAGES.index(prune) :]:
        stage(workspace, settings)
    return settings


def copy_workspace(workspace: Workspace, root: Path) -> Workspace:
    """The same files somewhere else."""
    shutil.copytree(workspace.root, root, dirs_exist_ok=True)
    return Workspace(root)
