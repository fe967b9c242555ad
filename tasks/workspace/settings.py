"""The one reader of params.yaml: strict, frozen, and the place where bad settings are refused."""

import re
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails

from dass.errors import InputError
from dass.method.allocation import DEFAULT_BOUND
from dass.method.methods import Asked, Layout
from dass.method.plan import (
    DEFAULT_AUTO_BUDGET,
    DEFAULT_AUTO_WINDOWS,
    DEFAULT_EPOCHS,
    DEFAULT_MAX_SWAPS,
    DEFAULT_MIN_EXPERT_TOKENS,
    Allocation,
    Plan,
    Propagation,
    Refine,
    Update,
    plan,
)
from dass.recovery.recipe import Recipe, TeacherKind, Train, check_enough
from tasks.workspace.small_files import parse_yaml, read_small

Bos = Literal["auto", "always", "never"]
DType = Literal["auto", "float32", "bfloat16", "float16"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Source(_Section):
    """Where a model or a text comes from.

    Attributes:
        uri: `org/name@revision` on the hub, a local path, `pypi://DIST==VERSION/PATH/IN/WHEEL`, or a list of
            such wheel paths whose files are concatenated.
        sha256: digest of the file (of the whole, for a list). Required for `pypi://`.
        split: which split of a hub data set to read; None is "train".
        subset: which configuration of a hub data set to read, when it has several.
        data_files: which of a hub data set's files to read ("en/c4-train.00000-of-01024.json.gz"); None is all.
        column: which column of a JSONL, parquet or hub data set holds the text.
    """

    uri: str | list[str]
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    split: str | None = None
    subset: str | None = None
    data_files: str | None = None
    column: str = "text"

    @model_validator(mode="after")
    def _wheels_need_a_digest(self) -> "Source":
        uris = [self.uri] if isinstance(self.uri, str) else self.uri
        if not uris or not all(uris):
            raise ValueError("uri is empty: expected a hub id, a path or pypi://DIST==VERSION/PATH/IN/WHEEL")
        wheels = [uri.startswith("pypi://") for uri in uris]
        if len(uris) > 1 and not all(wheels):
            raise ValueError("uri is a list: only files inside wheels (pypi://...) can be concatenated")
        if any(wheels) and self.sha256 is None:
            raise ValueError(
                "sha256 is missing: a file inside a wheel is named by its digest. "
                "Add sha256, or -S sources.ROLE.sha256=DIGEST"
            )
        return self


def _check_names(texts: Iterable[str], taken: tuple[str, ...]) -> None:
    for name in texts:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name) or name in taken:
            raise ValueError(
                f"a text is called {name[:50]!r}: expected letters, digits, _ and -, and not the name of "
                f"sources.{taken[0]}"
            )


class Sources(_Section):
    """What goes in. `dtype` is the base checkpoint's: auto keeps its own, a GGUF becomes bfloat16."""

    model: Source
    calibration: Source
    evaluation: Source
    dtype: DType = "auto"


class CalibrationText(Source):
    """A text besides sources.calibration, and which share of the windows it gives."""

    share: float = Field(gt=0.0, lt=1.0)


class Calibration(_Section):
    """The windows statistics are taken on: `samples` windows of `sequence_length` tokens, drawn with `seed`.

    Attributes:
        source: what gives them, but for the shares of `texts`: sources.calibration, or the dense model itself.
        temperature: of what the model writes itself.
        top_k: it draws from the so many likeliest tokens; None: from all.
        texts: more texts, each with its share of the windows.
    """

    samples: int = Field(gt=0)
    sequence_length: int = Field(gt=1)
    seed: int = Field(ge=0, lt=2**63)
    bos: Bos = "auto"
    source: Literal["text", "self"] = "text"
    temperature: float = Field(default=1.0, gt=0.0, le=10.0)
    top_k: int | None = Field(default=None, gt=0)
    texts: dict[str, CalibrationText] = Field(default_factory=dict)

    @field_validator("temperature", mode="before")
    @classmethod
    def _may_be_whole(cls, value: Any) -> Any:
        return float(value) if type(value) is int else value

    @field_validator("texts")
    @classmethod
    def _leave_a_rest(cls, value: dict[str, CalibrationText]) -> dict[str, CalibrationText]:
        _check_names(value, ("calibration", "self"))
        if (total := sum(Fraction(str(text.share)) for text in value.values())) >= 1:
            raise ValueError(f"the shares add up to {float(total):g}: expected less than 1, the rest is the source's")
        return value


class Prune(_Section):
    """What is removed, by which score, and what becomes of those that stay. `dass.method.plan.Plan` explains each.

    `sparsity` None takes what the pattern implies, `damping` None what each method takes.
    """

    method: Asked
    pattern: str
    sparsity: float | None
    alpha: float = Field(ge=0.0, le=4.0, allow_inf_nan=False)
    layout: Layout = "paper"
    update: Update = "none"
    validation_share: float = 0.0
    epochs: int = DEFAULT_EPOCHS
    tune_norms: bool = False
    allocation: Allocation = "uniform"
    owl_bound: float = DEFAULT_BOUND
    propagation: Propagation = "pruned"
    damping: float | None = None
    min_expert_tokens: int = DEFAULT_MIN_EXPERT_TOKENS
    refine: Refine = "none"
    max_swaps: int = DEFAULT_MAX_SWAPS
    auto_windows: int = DEFAULT_AUTO_WINDOWS
    auto_budget: int = DEFAULT_AUTO_BUDGET

    @field_validator("sparsity", "alpha", "owl_bound", "damping", "validation_share", mode="before")
    @classmethod
    def _may_be_whole(cls, value: Any) -> Any:
        return float(value) if type(value) is int else value

    @model_validator(mode="after")
    def _go_together(self) -> "Prune":
        _ = self.plan
        return self

    @property
    def plan(self) -> Plan:
        """What the engine is asked for."""
        return plan(**self.model_dump())


class Recover(_Section):
    """How the pruned model is trained against its base. `dass.recovery.recipe.Recipe` explains what is not here.

    Attributes:
        steps: 0 trains nothing.
        windows: how many windows to draw from sources.calibration for this; None takes the calibration windows.
        sequence_length: tokens of a drawn window; None takes the calibration's.
    """

    steps: int = Field(default=0, ge=0)
    train: Train = "mlp+norms"
    lora_rank: int = Field(default=16, gt=0)
    learning_rate: float = Field(default=5e-4, gt=0.0, allow_inf_nan=False)
    warmup_steps: int = Field(default=5, ge=0)
    weight_decay: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    max_grad_norm: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    step_tokens: int = Field(default=4096, gt=0)
    batch_tokens: int = Field(default=2048, gt=0)
    temperature: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    mse: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    teacher: TeacherKind = "live"
    top_k: int = Field(default=64, gt=0)
    windows: int | None = Field(default=None, gt=0)
    sequence_length: int | None = Field(default=None, gt=1)
    validation_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    evaluate_every: int = Field(default=10, gt=0)
    patience: int | None = Field(default=None, gt=0)
    checkpoint_every: int = Field(default=10, gt=0)
    activation_checkpointing: bool = False
    seed: int = Field(default=0, ge=0, lt=2**62)

    @field_validator(
        *("learning_rate", "weight_decay", "max_grad_norm", "temperature", "mse", "validation_share"), mode="before"
    )
    @classmethod
    def _may_be_whole(cls, value: Any) -> Any:
        return float(value) if type(value) is int else value

    @model_validator(mode="after")
    def _go_together(self) -> "Recover":
        if self.mse and self.teacher == "stored":
            raise ValueError(
                'mse is above 0 and teacher "stored": only its logits are stored. Use teacher: live, or mse: 0'
            )
        if self.sequence_length is not None and self.windows is None:
            raise ValueError(
                "sequence_length is set and windows null: the calibration windows have theirs. Set windows too"
            )
        return self

    @property
    def recipe(self) -> Recipe:
        """What the training loop is asked for."""
        return Recipe(**self.model_dump(exclude={"windows", "sequence_length"}))


class Engine(_Section):
    """How it is computed. None of this changes what is asked for.

    Attributes:
        device: "auto" takes CUDA where there is any.
        dtype: type to compute in; "auto" is the checkpoint's.
        batch_tokens: tokens computed at once; "auto" chooses by device.
        hidden_states: where the calibration hidden states lie.
        checkpoint_every: also keep hidden states behind every so many layers, so that a resumed run replays less.
        processes: how many share the calibration windows.
    """

    device: str = "auto"
    dtype: DType = "auto"
    batch_tokens: Literal["auto"] | int = "auto"
    hidden_states: Literal["auto", "device", "host", "disk"] = "auto"
    checkpoint_every: int | None = Field(default=None, gt=0)
    processes: int = Field(default=1, gt=0, le=1024)

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError('expected "auto", "cpu", "cuda" or "cuda:N"')
        return value

    @field_validator("batch_tokens")
    @classmethod
    def _is_positive(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise ValueError('expected "auto" or a positive number of tokens')
        return value


class Evaluate(_Section):
    """What is measured: predictions on held-out text, and zero-shot tasks.

    Attributes:
        samples: at most so many windows; None takes the whole text.
        sequence_length: tokens of a window.
        texts: texts besides sources.evaluation, each measured for itself.
        tasks: lm_eval's names of tasks, or of groups of tasks.
        task_files: task -> a file with its documents, in place of the hub's; or split -> file, where examples are drawn
            from another split.
        limit: the first so many documents of each task; None takes all.
        num_fewshot: examples before each question; None takes the task's own number.
        batch_size: requests computed at once; "auto" chooses by the vocabulary and the device.
        seed: draws the examples.
    """

    samples: int | None = Field(gt=0)
    sequence_length: int = Field(gt=1)
    bos: Bos = "auto"
    texts: dict[str, Source] = Field(default_factory=dict)
    tasks: list[str] = Field(default_factory=list)
    task_files: dict[str, str | dict[str, str]] = Field(default_factory=dict)
    limit: int | None = Field(default=None, gt=0)
    num_fewshot: int | None = Field(default=None, ge=0, le=1024)
    batch_size: Literal["auto"] | int = "auto"
    seed: int = Field(default=1234, ge=0, lt=2**32)

    @field_validator("batch_size")
    @classmethod
    def _is_positive(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise ValueError('expected "auto" or a positive number of requests')
        return value

    @field_validator("tasks")
    @classmethod
    def _once_each(cls, value: list[str]) -> list[str]:
        if repeated := [name for name in value if value.count(name) > 1]:
            raise ValueError(f"{repeated[0]!r} is there twice: expected each task once")
        return value

    @field_validator("task_files")
    @classmethod
    def _names_files(cls, value: dict[str, str | dict[str, str]]) -> dict[str, str | dict[str, str]]:
        for task, files in value.items():
            if not files or not all([files] if isinstance(files, str) else files.values()):
                raise ValueError(f"{task} has no file: expected a path, or a path for each split")
        return value

    @field_validator("texts")
    @classmethod
    def _are_named(cls, value: dict[str, Source]) -> dict[str, Source]:
        _check_names(value, ("evaluation",))
        return value


class Register(_Section):
    """Where the result is registered in MLflow, and what its version holds.

    Attributes:
        model: registered model's name.
        experiment: MLflow experiment.
        artifact: the pruned checkpoint, or masks only: the base is then fetched when the version is loaded.
        save_experiment: also save the workspace as a DVC experiment, which the version's tags name. Needs git.
    """

    model: str = Field(pattern=r"^[^/:]+$", min_length=1)
    experiment: str = Field(min_length=1)
    artifact: Literal["checkpoint", "masks"] = "checkpoint"
    save_experiment: bool = False


class TaskDrop(_Section):
    """What a task may lose: `drop`; `certain` asks that the far end of the drop's 95 % interval holds too."""

    drop: float = Field(ge=0.0, le=1.0, allow_inf_nan=False)
    certain: bool = False

    @field_validator("drop", mode="before")
    @classmethod
    def _may_be_whole(cls, value: Any) -> Any:
        return float(value) if type(value) is int else value


class Promote(_Section):
    """What a version must hold to become champion. A rule that is null (or false, or empty) is not asked.

    Attributes:
        max_ratio: highest perplexity ratio, pruned / dense.
        min_sparsity: lowest share of zeros in the MLPs, counted in the checkpoint.
        max_task_drop: zero-shot task -> largest loss of accuracy, dense - pruned; or {drop, certain}. A task that was
            not evaluated fails.
        optional_tasks: those of them that pass when they were not evaluated.
        max_kl: largest divergence of the pruned model's predictions from the dense model's, in nats a token.
        min_top1_agreement: smallest share of tokens for which both models hold the same one most likely.
        max_overlap: largest share of an evaluation text's 13-grams that the calibration windows hold.
        max_layer_error: largest relative output error of a layer's MLP.
        kernel: a kernel that must be able to run every pruned matrix: "2:4".
        margin: by which share the perplexity ratio may be worse than the present champion's.
        clean_git: made from committed files only.
        proof: every step of `dass verify` holds.
    """

    max_ratio: float | None = Field(default=None, gt=0.0)
    min_sparsity: float | None = Field(default=None, ge=0.0, le=1.0)
    max_task_drop: dict[str, float | TaskDrop] = Field(default_factory=dict)
    optional_tasks: list[str] = Field(default_factory=list)
    max_kl: float | None = Field(default=None, gt=0.0)
    min_top1_agreement: float | None = Field(default=None, ge=0.0, le=1.0)
    max_overlap: float | None = Field(default=None, ge=0.0, le=1.0)
    max_layer_error: float | None = Field(default=None, gt=0.0)
    kernel: Literal["2:4"] | None = None
    margin: float | None = Field(default=None, ge=0.0)
    clean_git: bool = False
    proof: bool = True

    @field_validator(
        *("max_ratio", "min_sparsity", "max_kl", "min_top1_agreement", "max_overlap", "max_layer_error", "margin"),
        mode="before",
    )
    @classmethod
    def _may_be_whole(cls, value: Any) -> Any:
        return float(value) if type(value) is int else value

    @field_validator("max_task_drop", mode="before")
    @classmethod
    def _are_drops(cls, value: Any) -> Any:
        for task, drop in value.items() if isinstance(value, dict) else ():
            keys = set(drop) if isinstance(drop, dict) else {"drop"}
            number = drop.get("drop") if isinstance(drop, dict) else drop
            if type(number) not in (int, float) or not keys <= {"drop", "certain"}:
                raise ValueError(f"{task}: expected the largest loss as a number, or {{drop: NUMBER, certain: true}}")
        return value

    @field_validator("optional_tasks")
    @classmethod
    def _are_rules(cls, value: list[str], info: ValidationInfo) -> list[str]:
        unknown = [task for task in value if task not in info.data.get("max_task_drop", {})]
        if unknown:
            raise ValueError(f"{unknown[0]!r} has no rule in max_task_drop: expected one of its tasks")
        return value


class Settings(_Section):
    """Everything params.yaml says, one section a stage."""

    sources: Sources
    calibration: Calibration
    prune: Prune
    recover: Recover = Recover()
    engine: Engine
    evaluate: Evaluate
    register_: Register = Field(alias="register")
    promote: Promote = Promote()

    @field_validator("prune")
    @classmethod
    def _leaves_windows_to_prune_with(cls, value: Prune, info: ValidationInfo) -> Prune:
        if (calibration := info.data.get("calibration")) is not None:
            value.plan.check_samples(calibration.samples)
        return value

    @model_validator(mode="after")
    def _there_is_enough_to_train_on(self) -> "Settings":
        if self.recover.steps:
            windows = self.recover.windows or self.calibration.samples
            length = self.recover.sequence_length or self.calibration.sequence_length
            check_enough(windows, length, self.recover.recipe, self.engine.processes)
        return self


def validate_settings(values: Any, origin: str) -> Settings:
    """Check raw settings.

    Raises:
        InputError: one line: the first wrong value, what was expected, and `origin`.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
        where = _named(errors[0], values)
        # A value that may be of several types gets one error from each.
        told = list(dict.fromkeys(_message(each) for each in errors if _named(each, values) == where))
        message = " or ".join([told[0], *(each.removeprefix("expected ") for each in told[1:])])
        named = f"{'.'.join(where)}{_given(errors[0])}: " if where else ""
        raise InputError(f"{origin}: {named}{message}") from None


def _named(error: ErrorDetails, values: Any) -> list[str]:
    """The setting an error is about. pydantic's location also names the type it tried; no setting is called that."""
    path: list[str] = []
    for part in error["loc"]:
        known = isinstance(values, dict) and part in values
        if not known and error["type"] != "missing":
            break
        path.append(str(part))
        values = values[part] if known else None
    return path


def _given(error: ErrorDetails) -> str:
    told = error["type"] not in ("extra_forbidden", "missing") and not isinstance(error["input"], dict)
    return f" is {_short(repr(error['input']))}" if told else ""


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def _message(error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        return f"unknown key. Expected one of {', '.join(_keys(error['loc'][:-1]))}"
    if error["type"] == "missing":
        return "missing. Add it"
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"expected a section with {', '.join(_keys(error['loc']))}"
    if error["type"] == "string_pattern_mismatch" and error["loc"][-1] == "sha256":
        return "expected 64 hexadecimal digits in lower case"
    return error["msg"].removeprefix("Value error, ").replace("Input should be ", "expected ")


def _keys(section: tuple[int | str, ...]) -> list[str]:
    model: Any = Settings
    for part in section:
        if get_origin(model) is dict:  # sections with names of their own, as evaluate.texts has
            model = get_args(model)[1]
        else:
            fields = {field.alias or name: field for name, field in model.model_fields.items()}
            model = fields[str(part)].annotation
    if get_origin(model) is dict:
        return ["NAME"]
    return [field.alias or name for name, field in model.model_fields.items()]


def load_settings(params: Path) -> Settings:
    """Read and check params.yaml.

    Raises:
        InputError: the file is missing, is not YAML, or holds a value that cannot be used.
    """
    return validate_settings(read_params(params), params.name)


def read_params(params: Path) -> dict[str, Any]:
    """The raw content of params.yaml.

    Raises:
        InputError: the file is missing or unreadable, is not YAML, or holds no sections.
    """
    try:
        values = parse_yaml(read_small(params, "Restore it, or make a workspace with: dass init FOLDER"), params.name)
    except FileNotFoundError:
        raise InputError(f"No {params}. Run: dass init {params.parent}") from None
    if not isinstance(values, dict):
        raise InputError(f"{params.name} holds no sections: expected {', '.join(_keys(()))}.")
    return values
