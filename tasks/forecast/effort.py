"""What each stage has to do: matrix products counted by hand, bytes moved, and what does not grow with the model.

The constants were fitted to runs of SmolLM2-135M and of a tiny model on two cores; what a machine really takes is kept
and put in their place (`tasks.forecast.rates`).
"""

from dataclasses import dataclass

from tasks.forecast.shape import Shape
from tasks.workspace.settings import Settings, Source

_WHOLE_TEXT = 300_000
"""Tokens of a text that is taken whole: WikiText-2's test split has about so many."""
_OF_A_LOGIT = 150
"""Operations that one logit is worth: its exponential, and moving it, cost more than its products."""
_FIT_STEPS = 40  # of conjugate gradients, or passes of Adam over an MLP
_SHARES = 5  # that `allocation: sensitivity` tries of each layer
_CANDIDATES = 6  # scores that `auto` proposes for all layers at first
_DEQUANTISED = 30  # a GGUF file takes the time of so many times moving what comes out of it
_WRITING = 10  # a token that is written costs so many that are read


@dataclass(frozen=True)
class Effort:
    """What a stage has to do.

    Attributes:
        seconds: that do not grow: imports, reading a tokenizer, drawing.
        operations: floating-point operations, in products of matrices.
        moved: bytes read, converted, hashed and written.
    """

    seconds: float
    operations: float = 0.0
    moved: float = 0.0


def effort_of(stage: str, shape: Shape, settings: Settings) -> Effort | None:
    """What a stage of dvc.yaml has to do, or "register", or "start": the command itself and Prefect's server, which
    at its "first start" makes its database.

    Returns:
        None: it cannot be told before (how long tasks are).
    """
    stored = shape.weights * shape.bytes_each
    tokens = evaluation_tokens(settings)
    read = _pass(shape, settings.evaluate.sequence_length, 1.0)
    logits = shape.head * 2 + shape.vocabulary * _OF_A_LOGIT
    match stage:
        case "sources":
            return Effort(5.0, moved=(6 if _is_folder(settings.sources.model) else _DEQUANTISED) * stored)
        case "calibration":
            written = _WRITING * calibration_tokens(settings) if settings.calibration.source == "self" else 0
            return Effort(1.5, written * (_pass(shape, settings.calibration.sequence_length, 1.0) + shape.head * 2))
        case "baseline":
            return Effort(2.0, tokens * (read + logits), moved=2 * stored)
        case "prune":
            return Effort(1.0, _pruning(shape, settings), moved=3 * stored)
        case "recover":
            return Effort(0.8, _training(shape, settings), moved=stored if settings.recover.steps else 0)
        case "materialize":
            return Effort(1.0, moved=3 * stored)
        case "evaluate":
            return Effort(1.5, tokens * (read + 1.5 * logits), moved=4 * stored)
        case "tasks":
            return Effort(1.0) if not settings.evaluate.tasks else None
        case "plots":
            return Effort(2.5)
        case "register":
            held = stored if settings.register_.artifact == "checkpoint" else shape.mlp_weights / 8
            return Effort(6.0, moved=2 * stored + 4 * held)
        case "start":
            return Effort(9.0)
        case "first start":
            return Effort(28.0)
    raise ValueError(stage)


def _is_folder(source: Source) -> bool:
    uri = source.uri if isinstance(source.uri, str) else source.uri[-1]
    return not uri.startswith("pypi://") and not uri.endswith(".gguf")


def calibration_tokens(settings: Settings) -> int:
    """Tokens that statistics are taken on."""
    return settings.calibration.samples * settings.calibration.sequence_length


def evaluation_tokens(settings: Settings) -> int:
    """Tokens that a model is measured on, more texts included."""
    asked = settings.evaluate
    one = _WHOLE_TEXT if asked.samples is None else asked.samples * asked.sequence_length
    return one * (1 + len(asked.texts))


def _pass(shape: Shape, length: int, mlps: float) -> float:
    """Operations of one token through all layers, whose MLPs are run `mlps` times."""
    scores = 2 * length * shape.queries  # and their weighted sum, over the causal half
    return shape.layers * (2 * shape.attention + scores + 2 * mlps * shape.active * shape.mlp)


def _pruning(shape: Shape, settings: Settings) -> float:
    prune, tokens = settings.prune, calibration_tokens(settings)
    length = settings.calibration.sequence_length
    # attention once; gate and up dense, then all three pruned (benchmarks/flops.py)
    passes = tokens * _pass(shape, length, 1.0 if prune.propagation == "dense" else 5 / 3)
    h, i = shape.hidden, shape.intermediate
    mlps = shape.layers * shape.experts
    rows = 2 * (2 * i * h * h + h * i * i)  # each row of three matrices times a square one
    more = 0.0
    if prune.method == "sparsegpt" or prune.update != "none" or prune.refine != "none":
        more += shape.layers * 2 * tokens * (h * h + shape.active * i * i) + mlps * 2 * rows
    if prune.update != "none":
        more += mlps * _FIT_STEPS * rows
    if prune.update in ("reconstruct-mlp", "reconstruct-block"):
        times = prune.epochs if prune.update == "reconstruct-block" else _FIT_STEPS / 4
        more += shape.layers * 6 * tokens * times * shape.active * shape.mlp
    if prune.refine != "none":
        more += mlps * prune.max_swaps * rows / 10
    if prune.method == "auto":
        judged = prune.auto_windows * length * (_pass(shape, length, 1.0) + 2 * shape.head)
        more += _CANDIDATES * passes + (_CANDIDATES + prune.auto_budget) * judged
    if prune.allocation == "sensitivity":  # on average half of the layers lie behind the one that is pruned
        judged = prune.auto_windows * length * (_pass(shape, length, 1.0) / 2 + shape.head)
        more += shape.layers * _SHARES * judged
    if prune.allocation != "uniform" and prune.propagation == "pruned":
        more += tokens * _pass(shape, length, 1.0)
    return passes + more


def _training(shape: Shape, settings: Settings) -> float:
    recover = settings.recover
    length = recover.sequence_length or settings.calibration.sequence_length
    token = _pass(shape, length, 1.0) + 2 * shape.head + shape.vocabulary * _OF_A_LOGIT
    times = 4 + recover.activation_checkpointing  # the teacher once, the student forwards once and backwards twice
    looks = recover.steps / recover.evaluate_every * recover.validation_share * calibration_tokens(settings)
    return token * (times * recover.steps * recover.step_tokens + looks)
