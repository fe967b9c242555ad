"""Seconds, memory, disk and downloads of the stages that would run."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tasks.forecast.effort import calibration_tokens, effort_of, evaluation_tokens
from tasks.forecast.rates import Machine, device_of, kind_of
from tasks.forecast.shape import Shape, shape_of
from tasks.sources.downloads import SCHEME
from tasks.sources.hub import HubId
from tasks.sources.locate import locate, uri_of
from tasks.workspace.cache_folder import cache_folder
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, Source

_IMPORTS = 900 << 20  # torch, transformers, MLflow, Prefect: what the process takes before it works
_READERS = {"sources": "model", "calibration": "calibration", "baseline": "evaluation"}


@dataclass(frozen=True)
class Cost:
    """What a stage takes.

    Attributes:
        seconds: None: it cannot be told before.
        memory: bytes that the process holds at most while it works.
        disk: bytes that are there afterwards, artifacts and what is registered.
        seen: whether the seconds rest on an earlier run on this machine.
    """

    seconds: float | None
    memory: int
    disk: int
    seen: bool


@dataclass(frozen=True)
class Forecast:
    """What a run takes.

    Attributes:
        stages: stage (or "start", "first start", "register") -> its cost.
        downloads: what has to be fetched first; its size and time are not known here.
        unknown: why nothing could be reckoned; None: it was.
    """

    stages: dict[str, Cost]
    downloads: list[str]
    unknown: str | None


def forecast(ws: Workspace, settings: Settings, stages: Iterable[str]) -> Forecast:
    """What stages of dvc.yaml, a start and "register" would take here. Nothing is fetched, and no model is loaded.

    Raises:
        InputError: a source is not to be had.
    """
    wanted = list(stages)
    read = [source for stage in wanted if stage in _READERS for source in _sources(stage, settings)]
    downloads = [uri_of(source) for source in read if _is_elsewhere(source, ws.root)]
    shape = shape_of(ws, settings)
    if shape is None:
        return Forecast({}, downloads, "the model is not here yet, or its config does not say how large it is")
    machine = Machine()
    costs = {}
    for stage in wanted:
        effort, kind = effort_of(stage, shape, settings), kind_of(stage, settings)
        seconds = None if effort is None else machine.seconds(kind, effort)
        costs[stage] = Cost(
            seconds, _memory(stage, shape, settings), _disk(stage, shape, settings), machine.knows(kind)
        )
    return Forecast(costs, downloads, None)


def _sources(stage: str, settings: Settings) -> list[Source]:
    named: list[Source] = [getattr(settings.sources, _READERS[stage])]
    texts: dict[str, list[Source]] = {
        "calibration": [*settings.calibration.texts.values()],
        "baseline": [*settings.evaluate.texts.values()],
    }
    return [*named, *texts.get(stage, [])]


def _is_elsewhere(source: Source, root: Path) -> bool:
    """Whether a source has to be fetched."""
    uri = source.uri if isinstance(source.uri, str) else source.uri[0]
    if uri.startswith(SCHEME):
        return not (cache_folder() / "sha256" / str(source.sha256)).is_file()
    return isinstance(locate(source, root), HubId)


def _computed_in(shape: Shape, settings: Settings) -> int:
    """Bytes a number in the type that is computed in."""
    if settings.engine.dtype != "auto":
        return 4 if settings.engine.dtype == "float32" else 2
    return 4 if device_of(settings) == "cpu" and not _has_bfloat16() else shape.bytes_each


def _has_bfloat16() -> bool:
    """Whether this processor has what oneDNN wants for bfloat16."""
    try:
        return "avx512bw" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def _memory(stage: str, shape: Shape, settings: Settings) -> int:
    each = _computed_in(shape, settings)
    stored = shape.weights * shape.bytes_each
    batch = 1024 if settings.engine.batch_tokens == "auto" else settings.engine.batch_tokens
    if stage == "sources":
        return _IMPORTS + 3 * stored
    if stage in ("baseline", "evaluate"):
        states = evaluation_tokens(settings) * shape.hidden * each
        return _IMPORTS + shape.weights * each + 3 * 4 * batch * shape.vocabulary + 2 * states
    if stage == "prune":
        layer = shape.attention + shape.experts * shape.mlp
        squares = 4 * (shape.hidden**2 + shape.intermediate**2) if settings.prune.update != "none" else 0
        states = 2 * calibration_tokens(settings) * shape.hidden * each
        return _IMPORTS + 3 * layer * 4 + squares + states
    if stage == "recover" and settings.recover.steps:
        trained = 4 * shape.weights * (4 if settings.recover.train != "lora" else 1)
        logits = 4 * 4 * settings.recover.batch_tokens * shape.vocabulary
        return _IMPORTS + trained + shape.weights * each + logits
    if stage in ("materialize", "register"):
        return _IMPORTS + stored
    if stage == "tasks" and settings.evaluate.tasks:
        return _IMPORTS + shape.weights * each + 4 * 4 * batch * shape.vocabulary
    return _IMPORTS


def _disk(stage: str, shape: Shape, settings: Settings) -> int:
    stored, masks = shape.weights * shape.bytes_each, shape.mlp_weights // 8
    match stage:
        case "sources" | "materialize":
            return stored
        case "prune":
            return masks + (0 if settings.prune.update == "none" else shape.mlp_weights * shape.bytes_each)
        case "recover":
            return shape.mlp_weights * shape.bytes_each if settings.recover.steps else 0
        case "baseline":
            return evaluation_tokens(settings) * shape.hidden * shape.bytes_each
        case "register":
            return stored if settings.register_.artifact == "checkpoint" else masks
    return 0
