"""Section `engine`."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from tasks.workspace.settings.section import Section, limits
from tasks.workspace.settings.sources import DType

ENDPOINT = re.compile(r"^(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}$")
"""A host's name or address and a port; of IPv6 in brackets."""


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
    processes: int = Field(
        default=1, gt=0, le=1024, description="How many processes of each node share the calibration windows."
    )
    nodes: int = Field(
        default=1, gt=0, le=1024, description="How many machines work on a run; on each but the first: dass join."
    )
    rdzv_endpoint: str | None = Field(
        default=None,
        description="HOST:PORT at which nodes meet: of the machine where dass run works, as the others reach it.",
        json_schema_extra=limits(pattern=ENDPOINT.pattern),
    )
    rdzv_timeout: int = Field(
        default=600, gt=0, le=86_400, description="Seconds after which a node that has not come is given up."
    )

    @property
    def ranks(self) -> int:
        """How many processes work on a run, on all nodes."""
        return self.nodes * self.processes

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError('expected "auto", "cpu", "cuda" or "cuda:N"')
        return value

    @field_validator("rdzv_endpoint")
    @classmethod
    def _is_an_endpoint(cls, value: str | None) -> str | None:
        if value is not None and (not ENDPOINT.match(value) or not 0 < int(value.rpartition(":")[2]) < 65_536):
            raise ValueError("expected HOST:PORT, for example node0:29500 or 10.0.0.1:29500, or null")
        return value

    @model_validator(mode="after")
    def _nodes_know_where_to_meet(self) -> "Engine":
        if self.nodes > 1 and self.rdzv_endpoint is None:
            raise ValueError(
                f"nodes is {self.nodes} without rdzv_endpoint: expected HOST:PORT of the machine where dass run works, "
                "for example engine.rdzv_endpoint=node0:29500"
            )
        return self

    @field_validator("batch_tokens")
    @classmethod
    def _is_positive(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise ValueError('expected "auto" or a positive number of tokens')
        return value
