"""Section `prune`: what `dass.method.plan.plan` is asked for, which also checks it."""

from pydantic import Field, model_validator

from dass.method.allocation import DEFAULT_BOUND
from dass.method.methods import Asked, Layout
from dass.method.plan import (
    DEFAULT_AUTO_BUDGET,
    DEFAULT_AUTO_WINDOWS,
    DEFAULT_EPOCHS,
    DEFAULT_MAX_SWAPS,
    DEFAULT_MIN_EXPERT_TOKENS,
    MOST_VALIDATION,
    Allocation,
    Plan,
    Propagation,
    Refine,
    Update,
    plan,
)
from tasks.workspace.settings.section import Section, limits


class Prune(Section):
    """What is removed, by which score, and what becomes of the weights that stay."""

    method: Asked = Field(
        description="Which score chooses; auto: for each layer the one that leaves the whole model nearest to dense."
    )
    pattern: str = Field(
        description='unstructured, or N:M: keep N of every M weights ("2:4").',
        json_schema_extra=limits(pattern=r"^(unstructured|\d+:\d+)$"),
    )
    sparsity: float | None = Field(
        description="Share of the MLP weights that is removed; null takes what the pattern implies.",
        json_schema_extra=limits(exclusiveMinimum=0, exclusiveMaximum=1),
    )
    alpha: float = Field(
        ge=0.0,
        le=4.0,
        allow_inf_nan=False,
        description="Exponent of the neuron norm in DaSS's gate and up scores; auto tries it besides 0.5, 1 and 1.5.",
    )
    layout: Layout = Field(
        default="paper",
        description="Where the N:M groups of gate and up lie: along neurons, the contraction, or both (2:4 only).",
    )
    update: Update = Field(
        default="none",
        description="Whether kept weights are re-fitted: each matrix (reconstruct), then all three of an MLP together "
        "(reconstruct-mlp), or to the dense model's hidden states behind the layer (reconstruct-block).",
    )
    validation_share: float = Field(
        default=0.0,
        description="Share of the calibration windows, the last ones, held back from re-fits: they choose the damping "
        "and when to stop. Masks are made from all windows.",
        json_schema_extra=limits(minimum=0, maximum=MOST_VALIDATION),
    )
    epochs: int = Field(
        default=DEFAULT_EPOCHS,
        description="How often reconstruct-block goes through the windows, at most.",
        json_schema_extra=limits(minimum=1),
    )
    tune_norms: bool = Field(default=False, description="reconstruct-block also trains the norms around the MLP.")
    allocation: Allocation = Field(
        default="uniform",
        description="The same share from every layer, less from layers with outliers (owl), or less from "
        "those that the whole model can spare least (sensitivity), at the same total.",
    )
    owl_bound: float = Field(
        default=DEFAULT_BOUND,
        description="Largest distance of a layer's sparsity from the target under owl and sensitivity.",
        json_schema_extra=limits(exclusiveMinimum=0, exclusiveMaximum=0.5),
    )
    propagation: Propagation = Field(
        default="pruned",
        description="A layer's statistics are taken behind pruned or behind dense ones. With dense, one pass serves "
        "every method, pattern and alpha.",
    )
    damping: float | None = Field(
        default=None,
        description="Of SparseGPT and of the re-fit, as a share of the diagonal; null takes 0.01 and 0.1.",
        json_schema_extra=limits(exclusiveMinimum=0, maximum=10),
    )
    min_expert_tokens: int = Field(
        default=DEFAULT_MIN_EXPERT_TOKENS,
        description="An expert that is routed fewer tokens than this is judged on all tokens of its layer.",
        json_schema_extra=limits(minimum=0),
    )
    refine: Refine = Field(
        default="none",
        description="Whether weights are swapped inside their groups once the score has chosen, while that lowers the "
        "output error.",
    )
    max_swaps: int = Field(
        default=DEFAULT_MAX_SWAPS,
        description="A row of a matrix takes part in no more swaps than this.",
        json_schema_extra=limits(minimum=1),
    )
    auto_windows: int = Field(
        default=DEFAULT_AUTO_WINDOWS,
        description="Calibration windows that auto and sensitivity judge by; nothing is fitted to them.",
        json_schema_extra=limits(minimum=1),
    )
    auto_budget: int = Field(
        default=DEFAULT_AUTO_BUDGET,
        description="Changes of single layers that auto tries after its first proposals.",
        json_schema_extra=limits(minimum=0),
    )

    @model_validator(mode="after")
    def _go_together(self) -> "Prune":
        _ = self.plan
        return self

    @property
    def plan(self) -> Plan:
        """What the engine is asked for."""
        return plan(**self.model_dump())
