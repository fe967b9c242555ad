"""Section `engine`."""

import re
from typing import Literal

from pydantic import Field, field_validator

from tasks.workspace.settings.section import Section, limits
from tasks.workspace.settings.sources import DType


class Engine(Section):
    """How it is computed. None of this changes what is asked for."""

    device: str = Field(
        default="auto",
        description="auto, cpu, cuda or cuda:N; auto takes CUDA where there is any.",
        json_schema_extra=limits(pattern=r"^(auto|cpu|cuda(:\d+)?)$"),
    )
    dtype: DType = Field(
        default="auto",
        description="Type to compute in; auto is the checkpoint's, and float32 on a CPU that lacks that one.",
    )
    batch_tokens: Literal["auto"] | int = Field(
        default="auto",
        description="Tokens computed at once; auto chooses by device.",
        json_schema_extra=limits(minimum=1),
    )
    hidden_states: Literal["auto", "device", "host", "disk"] = Field(
        default="auto", description="Where the calibration windows' hidden states lie."
    )
    checkpoint_every: int | None = Field(
        default=None,
        gt=0,
        description="Also keep hidden states behind every so many layers, so that a resumed run replays less.",
    )
    processes: int = Field(default=1, gt=0, le=1024, description="How many processes share the calibration windows.")

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
