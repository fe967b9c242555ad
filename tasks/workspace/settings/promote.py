"""Section `promote`."""

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from tasks.workspace.settings.section import Section


class TaskDrop(Section):
    """What a task may lose."""

    drop: float = Field(ge=0.0, le=1.0, allow_inf_nan=False, description="Largest loss of accuracy, dense - pruned.")
    certain: bool = Field(default=False, description="The far end of the drop's 95 % interval must hold too.")


class Promote(Section):
    """What a version must hold to become champion. A rule that is null (or false, or empty) is not asked."""

    max_ratio: float | None = Field(default=None, gt=0.0, description="Highest perplexity ratio, pruned / dense.")
    min_sparsity: float | None = Field(
        default=None, ge=0.0, le=1.0, description="Lowest share of zeros in the MLPs, counted in the checkpoint."
    )
    max_task_drop: dict[str, float | TaskDrop] = Field(
        default={},
        description="Zero-shot task: largest loss of accuracy, dense - pruned; or {drop: 0.02, certain: true}, whose "
        "95 % interval must hold too. A task that was not evaluated fails.",
    )
    optional_tasks: list[str] = Field(
        default=[], description="Those of max_task_drop that pass when they were not evaluated."
    )
    max_kl: float | None = Field(
        default=None,
        gt=0.0,
        description="Largest divergence of the pruned model's predictions from the dense model's, in nats a token.",
    )
    min_top1_agreement: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        description="Smallest share of tokens for which both models hold the same one most likely.",
    )
    max_overlap: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        description="Largest share of an evaluation text's 13-grams that the calibration windows hold.",
    )
    max_layer_error: float | None = Field(
        default=None, gt=0.0, description="Largest relative output error of a layer's MLP."
    )
    kernel: Literal["2:4"] | None = Field(
        default=None, description="A kernel that must be able to run every pruned matrix."
    )
    margin: float | None = Field(
        default=None,
        ge=0.0,
        description="By which share the perplexity ratio may be worse than the present champion's.",
    )
    clean_git: bool = Field(default=False, description="Made from committed files only.")
    proof: bool = Field(default=True, description="Every step of dass verify holds.")

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
