"""Which code a stage's result depends on: the import closure of its module, read from the source text.

The root's dvc.yaml lists these files as dependencies; a workspace elsewhere records one digest of them a stage.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

STAGE_MODULES = {
    "sources": "tasks.sources.base",
    "calibration": "tasks.calibration",
    "baseline": "tasks.evaluation.stages",
    "prune": "tasks.pruning.stages",
    "recover": "tasks.recovery.stages",
    "materialize": "tasks.pruning.stages",
    "evaluate": "tasks.evaluation.stages",
    "tasks": "tasks.evaluation.zero_shot",
    "plots": "tasks.plots",
}

# Changing these cannot change a result: how settings are read, where files lie, how progress is shown.
PLUMBING = frozenset(
    f"tasks.{name}"
    for name in (
        "pruning.nodes",
        "sources.pinned",
        "sources.waiting",
        "versioning.code",
        "versioning.follow_git",
        "versioning.git",
        "versioning.inputs",
        "versioning.pins",
        "versioning.repository",
        "versioning.stage_code",
        "versioning.stages",
        "workspace.cache_folder",
        "workspace.digests",
        "workspace.folder",
        "workspace.log_format",
        "workspace.patience",
        "workspace.progress",
        "workspace.redaction",
        "workspace.settings",
        "workspace.small_files",
        "workspace.tied",
    )
)
# Of dass: messages, vocabulary, how files are read and written; no arithmetic.
_WORDS_ONLY = frozenset(
    {
        *("dass", "dass.digests", "dass.errors", "dass.files", "dass.outputs", "dass.method.pattern"),
        *("dass.model.checkpoint", "dass.model.config_bounds", "dass.masks.pruned_record"),
    }
)
# Of dass: no arithmetic either, but what is written. Named like a module of `tasks`, where nothing else of dass counts.
_WRITERS = frozenset(
    f"dass.model.{name}" for name in ("checkpoint_folder", "complete", "older_keys", "pretrained", "references")
)

INSTALLED = Path(__file__).resolve().parents[2]


def code_paths(stage: str) -> list[str]:
    """The files and folders a stage's result depends on, relative to the folder that holds `tasks` and `dass`.

    Modules of `tasks` are named one by one; `dass` is named whole as soon as one of its computing modules is used.
    """
    modules = _closure(STAGE_MODULES[stage])
    tasks = sorted(_path(module) for module in modules if module.startswith("tasks."))
    counted = {module for module in modules if module.split(".")[0] == "dass"} - _WORDS_ONLY
    return [*(["dass"] if counted - _WRITERS else sorted(map(_path, counted))), *tasks]


def code_digest(stage: str, root: Path = INSTALLED) -> str:
    """sha256 over the names and bytes of a stage's code, as it stands under `root`."""
    digest = hashlib.sha256()
    for name in code_paths(stage):
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            content = file.read_bytes() if file.exists() else b""
            digest.update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@cache
def _closure(module: str) -> frozenset[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name in PLUMBING or not (INSTALLED / _path(name)).is_file():
            continue
        found.add(name)
        if not name.startswith("dass"):  # dass is taken whole
            waiting += _imported(INSTALLED / _path(name))
    return frozenset(found)


def _imported(file: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] in ("tasks", "dass")]


def _path(module: str) -> str:
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if (INSTALLED / path).is_dir() else f"{path}.py"
