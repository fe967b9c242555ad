"""Section `evaluate`."""

from typing import Literal

from pydantic import Field, field_validator

from tasks.workspace.settings.calibration import Bos
from tasks.workspace.settings.section import Section, limits
from tasks.workspace.settings.sources import Source, check_names


class Evaluate(Section):
    """What is measured: predictions on held-out text, and zero-shot tasks."""

    samples: int | None = Field(gt=0, description="At most so many windows; null takes the whole text.")
    sequence_length: int = Field(gt=1, description="Tokens of a window: the perplexity's context length.")
    bos: Bos = Field(default="auto", description="BOS at the start of every window; auto: of Gemma's only.")
    texts: dict[str, Source] = Field(
        default={}, description="More texts by name, each a source with figures of its own."
    )
    tasks: list[str] = Field(
        default=[], description="lm_eval's names of zero-shot tasks, or of groups of tasks; [] asks none."
    )
    task_files: dict[str, str | dict[str, str]] = Field(
        default={},
        description="Task: a file with its documents, in place of the hub's; or split: file, where examples are drawn "
        "from another split.",
    )
    limit: int | None = Field(
        default=None, gt=0, description="The first so many documents of each task; null takes all."
    )
    num_fewshot: int | None = Field(
        default=None, ge=0, le=1024, description="Examples before each question; null takes the task's own number."
    )
    batch_size: Literal["auto"] | int = Field(
        default="auto",
        description="Requests computed at once; auto chooses by the vocabulary and the device.",
        json_schema_extra=limits(minimum=1),
    )
    seed: int = Field(default=1234, ge=0, lt=2**32, description="Draws the examples.")

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
        check_names(value, ("evaluation",))
        return value
