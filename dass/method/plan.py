"""What is asked of the engine: method, pattern, layout, update, allocation. Checked once, before any work."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar, get_args

from dass.errors import InputError
from dass.method.allocation import DEFAULT_BOUND
from dass.method.methods import (
    DEFAULT_ALPHA,
    Asked,
    Layout,
    Projection,
    Score,
    candidate_scores,
    competition_axis,
)
from dass.method.pattern import Pattern, is_number, parse_pattern

Update = Literal["none", "reconstruct", "reconstruct-mlp"]
Allocation = Literal["uniform", "owl"]
Propagation = Literal["pruned", "dense"]
Refine = Literal["none", "swaps"]

DEFAULT_MIN_EXPERT_TOKENS = 256
DEFAULT_MAX_SWAPS = 100
"""Swaps that a row may take part in: the most that arXiv 2512.10922 shows."""
DEFAULT_AUTO_WINDOWS = 4
"""Calibration windows that `auto` holds back to judge by."""
DEFAULT_AUTO_BUDGET = 8
"""Changes of single layers that `auto` tries at most."""

_Choice = TypeVar("_Choice", bound=str)


@dataclass(frozen=True)
class Plan:
    """What to remove and what to do with the weights that stay. Made by `plan`.

    Attributes:
        method: which score chooses; "auto": for each layer the one that leaves the whole model nearest to dense.
        pattern: what share goes, and in which groups.
        alpha: exponent of the neuron norm in DaSS's gate and up scores; under "auto" one more that is tried.
        layout: along which axis the N:M groups of gate and up lie.
        update: whether kept weights are re-fitted after the mask is fixed.
        allocation: the same share from every layer, or less from layers with outliers.
        owl_bound: largest distance of a layer's sparsity from the target under `owl`.
        propagation: whether a layer's statistics come from pruned or from dense predecessors.
        damping: λ of SparseGPT and of the re-fit; None takes each one's default.
        min_expert_tokens: an expert routed fewer tokens than this is judged on all tokens of its layer.
        refine: whether weights are swapped inside their groups once the score has chosen, to lower the output error.
        max_swaps: a row of a matrix takes part in no more swaps than this.
        auto_windows: calibration windows that "auto" judges by; nothing is fitted to them.
        auto_budget: changes of single layers that "auto" tries after its first proposals; 0 tries none.
    """

    method: Asked
    pattern: Pattern
    alpha: float = DEFAULT_ALPHA
    layout: Layout = "paper"
    update: Update = "none"
    allocation: Allocation = "uniform"
    owl_bound: float = DEFAULT_BOUND
    propagation: Propagation = "pruned"
    damping: float | None = None
    min_expert_tokens: int = DEFAULT_MIN_EXPERT_TOKENS
    refine: Refine = "none"
    max_swaps: int = DEFAULT_MAX_SWAPS
    auto_windows: int = DEFAULT_AUTO_WINDOWS
    auto_budget: int = DEFAULT_AUTO_BUDGET

    @property
    def named(self) -> dict[str, Any]:
        """As records name it, in JSON; the sparsity is the one the pattern has."""
        return {**asdict(self), "pattern": str(self.pattern), "sparsity": self.pattern.sparsity}

    @property
    def changes_kept_weights(self) -> bool:
        """Whether weights that stay get new values."""
        return self.method == "sparsegpt" or self.update != "none"

    @property
    def needs_gram_x(self) -> bool:
        """Whether XᵀX of the MLP's input is needed."""
        return self.changes_kept_weights or self.refine == "swaps"

    @property
    def needs_gram_z(self) -> bool:
        """Whether ZᵀZ of the dense intermediate activations is needed (a re-fit takes the pruned ones')."""
        if self.method == "sparsegpt" or self.refine == "swaps":
            return True
        return self.update != "none" and self.propagation == "dense"

    @property
    def score(self) -> Score:
        """What the weights of every layer are chosen by; not of "auto", where each layer has its own."""
        assert self.method != "auto"
        return Score(self.method, self.alpha if self.method == "dass" else None)

    @property
    def candidates(self) -> list[Score]:
        """What a layer's score is chosen from.

        With the layout "contraction" DaSS chooses as Wanda does (‖z_i‖ is the same for a whole group).
        """
        if self.method != "auto":
            return [self.score]
        return [Score("wanda")] if self.layout == "contraction" else candidate_scores(self.alpha)

    def scored(self, score: Score) -> "Plan":
        """The same plan with one score, for a layer that has its own."""
        return replace(self, method=score.method, alpha=self.alpha if score.alpha is None else score.alpha)

    @property
    def held_back(self) -> int:
        """Calibration windows that statistics and re-fits do not see."""
        return self.auto_windows if self.method == "auto" else 0

    def check_samples(self, windows: int) -> None:
        """Raise InputError when so many calibration windows leave none to prune with."""
        if self.method == "auto" and self.auto_windows >= windows:
            raise InputError(
                f'method is "auto" and auto_windows {self.auto_windows}: it judges by so many calibration windows and '
                f"prunes with the others, but there are {windows}. Take more windows, or fewer to judge by."
            )

    def axis(self, projection: Projection) -> int | None:
        """The axis along which this projection's weights compete."""
        return competition_axis(projection, self.score.method, self.pattern, self.layout)


def plan(
    method: str = "dass",
    sparsity: float | None = None,
    pattern: str = "unstructured",
    alpha: float = DEFAULT_ALPHA,
    *,
    layout: str = "paper",
    update: str = "none",
    allocation: str = "uniform",
    owl_bound: float = DEFAULT_BOUND,
    propagation: str = "pruned",
    damping: float | None = None,
    min_expert_tokens: int = DEFAULT_MIN_EXPERT_TOKENS,
    refine: str = "none",
    max_swaps: int = DEFAULT_MAX_SWAPS,
    auto_windows: int = DEFAULT_AUTO_WINDOWS,
    auto_budget: int = DEFAULT_AUTO_BUDGET,
) -> Plan:
    """Check what is asked for.

    Raises:
        InputError: a value that is not known, is out of range, or does not go with another one.
    """
    for name, value in (("alpha", alpha), ("owl_bound", owl_bound), ("damping", damping), ("sparsity", sparsity)):
        if not is_number(value) and (value is not None or name in ("alpha", "owl_bound")):
            raise InputError(f"{name} is {value!r}: expected a number.")
    if not 0.0 <= alpha < float("inf"):
        raise InputError(f"alpha is {alpha}: expected a finite exponent of 0 or more, for example {DEFAULT_ALPHA}.")
    if damping is not None and not 0.0 < damping <= 10.0:
        raise InputError(f"damping is {damping}: expected a share above 0 and up to 10, for example 0.01.")
    for name, count, least, what in (
        ("min_expert_tokens", min_expert_tokens, 0, "tokens"),
        ("max_swaps", max_swaps, 1, "swaps a row"),
        ("auto_windows", auto_windows, 1, "windows"),
        ("auto_budget", auto_budget, 0, "changes of a layer to try"),
    ):
        if not isinstance(count, int) or isinstance(count, bool) or count < least:
            raise InputError(f"{name} is {count!r}: expected {least} or more {what}.")
    made = Plan(
        _one_of("method", method, get_args(Asked)),
        parse_pattern(pattern, sparsity),
        alpha,
        _one_of("layout", layout, get_args(Layout)),
        _one_of("update", update, get_args(Update)),
        _one_of("allocation", allocation, get_args(Allocation)),
        owl_bound,
        _one_of("propagation", propagation, get_args(Propagation)),
        damping,
        min_expert_tokens,
        _one_of("refine", refine, get_args(Refine)),
        max_swaps,
        auto_windows,
        auto_budget,
    )
    _check_together(made)
    return made


def _check_together(made: Plan) -> None:
    group, is_2_4 = made.pattern.group, (made.pattern.keep, made.pattern.group) == (2, 4)
    if made.layout == "contraction" and group is None:
        raise InputError('layout is "contraction" and pattern "unstructured": only N:M has groups. Use layout: paper.')
    if made.layout == "transposable" and not is_2_4:
        raise InputError(f'layout is "transposable" and pattern "{made.pattern}": expected pattern 2:4.')
    if made.update == "reconstruct-mlp" and made.propagation == "dense":
        raise InputError(
            'update is "reconstruct-mlp" and propagation "dense": it needs the tokens, not their statistics. '
            "Use propagation: pruned, or update: reconstruct."
        )
    if made.allocation == "owl":
        if made.layout == "transposable":
            raise InputError('allocation is "owl" and layout "transposable": every layer is 2:4 there. Use uniform.')
        if not 0.0 < made.owl_bound < min(made.pattern.sparsity, 1.0 - made.pattern.sparsity):
            raise InputError(
                f"owl_bound is {made.owl_bound:g}: expected above 0 and less than "
                f"{min(made.pattern.sparsity, 1.0 - made.pattern.sparsity):g}, so that no layer loses all or nothing."
            )
        if group is not None and made.owl_bound <= 0.5 / group:
            raise InputError(
                f"owl_bound is {made.owl_bound:g}: a group of {group} gives up whole weights, so less than "
                f"{0.5 / group:g} moves no layer. Use more, or pattern: unstructured."
            )


def _one_of(name: str, value: str, known: Sequence[_Choice]) -> _Choice:
    for each in known:
        if each == value:
            return each
    raise InputError(f"{name} is {value!r}: expected one of {', '.join(known)}.")
