"""What is asked of the engine: method, pattern, layout, update, allocation. Checked once, before any work."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar, get_args

from dass.errors import InputError, briefly
from dass.method.allocation import DEFAULT_BOUND
from dass.method.methods import (
    DEFAULT_ALPHA,
    PROJECTIONS,
    Asked,
    Layout,
    Projection,
    Score,
    candidate_scores,
    competition_axis,
)
from dass.method.pattern import Pattern, is_number, parse_pattern

Update = Literal["none", "reconstruct", "reconstruct-mlp", "reconstruct-block"]
Allocation = Literal["uniform", "owl", "sensitivity"]
Propagation = Literal["pruned", "dense"]
Refine = Literal["none", "swaps"]

DEFAULT_MIN_EXPERT_TOKENS = 256
DEFAULT_MAX_SWAPS = 100
"""Swaps that a row may take part in: the most that arXiv 2512.10922 shows."""
DEFAULT_AUTO_WINDOWS = 4
"""Calibration windows that `auto` holds back to judge by."""
DEFAULT_AUTO_BUDGET = 8
"""Changes of single layers that `auto` tries at most."""
DEFAULT_EPOCHS = 8
MOST_VALIDATION = 0.5
"""Of the calibration windows, the largest share that may be held back from re-fits."""

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
        allocation: the same share from every layer, less from layers with outliers (owl), or less from those that the
            whole model can spare least (sensitivity).
        owl_bound: largest distance of a layer's sparsity from the target under `owl` and `sensitivity`.
        propagation: whether a layer's statistics come from pruned or from dense predecessors.
        damping: λ of SparseGPT and of the re-fit; None takes each one's default.
        min_expert_tokens: an expert routed fewer tokens than this is judged on all tokens of its layer.
        refine: whether weights are swapped inside their groups once the score has chosen, to lower the output error.
        max_swaps: a row of a matrix takes part in no more swaps than this.
        auto_windows: calibration windows that method "auto" and allocation "sensitivity" judge by; nothing is fitted to
            them.
        auto_budget: changes of single layers that "auto" tries after its first proposals; 0 tries none.
        validation_share: share of the calibration windows, the last ones, that no re-fit is fitted to: they choose its
            damping and when it stops. Masks are made from all windows.
        epochs: how often `reconstruct-block` goes through the windows, at most.
        tune_norms: whether `reconstruct-block` also trains the norms around the MLP.
        only: the projections that are pruned, and re-fitted; the others keep their values. Pattern and sparsity are
            of each matrix that is pruned.
        skip_layers: layers that keep all their values. The others are not pruned further in their place.
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
    validation_share: float = 0.0
    epochs: int = DEFAULT_EPOCHS
    tune_norms: bool = False
    only: tuple[Projection, ...] = PROJECTIONS
    skip_layers: tuple[int, ...] = ()

    @property
    def fields(self) -> dict[str, Any]:
        """Field by field."""
        return asdict(self)

    @property
    def named(self) -> dict[str, Any]:
        """As records name it, in JSON; the sparsity is the one the pattern has."""
        lists = {"only": list(self.only), "skip_layers": list(self.skip_layers)}
        return {**self.fields, **lists, "pattern": str(self.pattern), "sparsity": self.pattern.sparsity}

    def of_layer(self, index: int) -> "Plan":
        """What is asked of one layer: of one that is skipped, nothing."""
        return replace(self, only=()) if index in self.skip_layers else self

    @property
    def changes_kept_weights(self) -> bool:
        """Whether weights that stay get new values."""
        return self.method == "sparsegpt" or self.update != "none"

    @property
    def trains(self) -> bool:
        """Whether weights that stay are re-fitted by gradients."""
        return self.update in ("reconstruct-mlp", "reconstruct-block")

    @property
    def needs_gram_x(self) -> bool:
        """Whether XᵀX of the MLP's input, over all windows, is needed."""
        if not self.only:
            return False
        if (self.method == "sparsegpt" or self.refine == "swaps") and self.only != ("down_proj",):
            return True
        return self.update != "none" and self.validation_share == 0.0

    @property
    def needs_gram_z(self) -> bool:
        """Whether ZᵀZ of the dense intermediate activations is needed (a re-fit takes the pruned ones')."""
        if not self.only:
            return False
        if (self.method == "sparsegpt" or self.refine == "swaps") and "down_proj" in self.only:
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

        With the layout "contraction" DaSS chooses as Wanda does (‖z_i‖ is the same for a whole group), and so it does
        in down.
        """
        if self.method != "auto":
            return [self.score]
        alike = self.layout == "contraction" or self.only == ("down_proj",)
        return [Score("wanda")] if alike else candidate_scores(self.alpha)

    def scored(self, score: Score) -> "Plan":
        """The same plan with one score, for a layer that has its own."""
        return replace(self, method=score.method, alpha=self.alpha if score.alpha is None else score.alpha)

    @property
    def held_back(self) -> int:
        """Calibration windows that statistics and re-fits do not see."""
        return self.auto_windows if self.judges_by else 0

    @property
    def judges_by(self) -> str | None:
        """What in the plan judges the whole model on windows held back, as "setting is value"; None: nothing."""
        if self.method == "auto":
            return 'method is "auto"'
        return 'allocation is "sensitivity"' if self.allocation == "sensitivity" else None

    @property
    def masks_only(self) -> "Plan":
        """The same choice of weights, and nothing done to those that stay."""
        return replace(self, update="none", refine="none", propagation="dense", validation_share=0.0, tune_norms=False)

    def check_samples(self, windows: int) -> None:
        """Raise InputError when so many calibration windows leave none to prune with, or none to fit to."""
        if self.judges_by is not None and self.auto_windows >= windows:
            raise InputError(
                f"{self.judges_by} and auto_windows {self.auto_windows}: it judges by so many calibration windows and "
                f"prunes with the others, but there are {windows}. Take more windows, or fewer to judge by."
            )
        self.validation_windows(windows - self.held_back)

    def validation_windows(self, windows: int) -> int:
        """How many of so many calibration windows no re-fit is fitted to: the last ones.

        Raises:
            InputError: windows too few to fit to some and to hold back others.
        """
        if self.validation_share == 0.0:
            return 0
        if windows < 2:
            raise InputError(
                f"validation_share is {self.validation_share:g} and {windows} calibration window is left to fit "
                "to: expected 2 or more, one to hold back. Take more windows, or validation_share: 0."
            )
        return max(1, round(self.validation_share * windows))

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
    validation_share: float = 0.0,
    epochs: int = DEFAULT_EPOCHS,
    tune_norms: bool = False,
    only: Iterable[str] = PROJECTIONS,
    skip_layers: Iterable[int] = (),
) -> Plan:
    """Check what is asked for.

    Raises:
        InputError: a value that is not known, is out of range, or does not go with another one.
    """
    for name, value in (("damping", damping), ("sparsity", sparsity)):
        if not is_number(value) and value is not None:
            raise InputError(f"{name} is {briefly(value)}: expected a number.")
    for name, value in (("alpha", alpha), ("owl_bound", owl_bound), ("validation_share", validation_share)):
        if not is_number(value):
            raise InputError(f"{name} is {briefly(value)}: expected a number.")
    if not 0.0 <= alpha < float("inf"):
        raise InputError(f"alpha is {alpha}: expected a finite exponent of 0 or more, for example {DEFAULT_ALPHA}.")
    if damping is not None and not 0.0 < damping <= 10.0:
        raise InputError(f"damping is {damping}: expected a share above 0 and up to 10, for example 0.01.")
    for name, count, least, what in (
        ("min_expert_tokens", min_expert_tokens, 0, "tokens"),
        ("max_swaps", max_swaps, 1, "swaps a row"),
        ("auto_windows", auto_windows, 1, "windows"),
        ("auto_budget", auto_budget, 0, "changes of a layer to try"),
        ("epochs", epochs, 1, "epochs"),
    ):
        if not isinstance(count, int) or isinstance(count, bool) or count < least:
            raise InputError(f"{name} is {briefly(count)}: expected {least} or more {what}.")
    if not 0.0 <= validation_share <= MOST_VALIDATION:
        raise InputError(
            f"validation_share is {validation_share}: expected a share of the calibration windows from 0 to "
            f"{MOST_VALIDATION}, for example 0.1."
        )
    if not isinstance(tune_norms, bool):
        raise InputError(f"tune_norms is {briefly(tune_norms)}: expected true or false.")
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
        validation_share,
        epochs,
        tune_norms,
        _projections(only),
        _layer_numbers(skip_layers),
    )
    _check_together(made)
    return made


def _check_together(made: Plan) -> None:
    group, is_2_4 = made.pattern.group, (made.pattern.keep, made.pattern.group) == (2, 4)
    if made.layout == "contraction" and group is None:
        raise InputError('layout is "contraction" and pattern "unstructured": only N:M has groups. Use layout: paper.')
    if made.layout == "transposable" and not is_2_4:
        raise InputError(f'layout is "transposable" and pattern "{made.pattern}": expected pattern 2:4.')
    if made.trains and made.only != PROJECTIONS:
        raise InputError(
            f'update is "{made.update}" and only {list(made.only)}: it trains gate, up and down together. '
            "Use update: reconstruct, or leave only out."
        )
    if made.trains and made.propagation == "dense":
        raise InputError(
            f'update is "{made.update}" and propagation "dense": it needs the tokens, not their statistics. '
            "Use propagation: pruned, or update: reconstruct."
        )
    if made.validation_share > 0.0:
        if made.update == "none":
            raise InputError(
                f'validation_share is {made.validation_share:g} and update "none": there is no re-fit to hold windows '
                "back from. Use validation_share: 0, or an update."
            )
        if made.propagation == "dense":
            raise InputError(
                f'validation_share is {made.validation_share:g} and propagation "dense": its statistics are of all '
                "windows together. Use propagation: pruned, or validation_share: 0."
            )
    if made.tune_norms and made.update != "reconstruct-block":
        raise InputError(
            f'tune_norms is true and update "{made.update}": only update: reconstruct-block trains norms. '
            "Use tune_norms: false, or that update."
        )
    if made.allocation != "uniform":
        if made.layout == "transposable":
            raise InputError(
                f'allocation is "{made.allocation}" and layout "transposable": every layer is 2:4 there. Use uniform.'
            )
        if not 0.0 < made.owl_bound < min(made.pattern.sparsity, 1.0 - made.pattern.sparsity):
            raise InputError(
                f"owl_bound is {made.owl_bound:g}: expected above 0 and less than "
                f"{min(made.pattern.sparsity, 1.0 - made.pattern.sparsity):g}, so that no layer loses all or nothing."
            )
        # OWL's shares are rounded to whole weights; sensitivity chooses among those inside the band.
        if group is not None and made.allocation == "owl" and made.owl_bound <= 0.5 / group:
            raise _moves_no_layer(made.owl_bound, group, 0.5 / group)
        if group is not None and made.allocation == "sensitivity" and made.owl_bound < 1.0 / group - 1e-9:
            raise _moves_no_layer(made.owl_bound, group, 1.0 / group)


def _moves_no_layer(bound: float, group: int, least: float) -> InputError:
    return InputError(
        f"owl_bound is {bound:g}: a group of {group} gives up whole weights, so less than {least:g} moves no layer. "
        "Use more, or pattern: unstructured."
    )


def _projections(only: Any) -> tuple[Projection, ...]:
    listed = list(only) if isinstance(only, list | tuple | set | frozenset) else []
    if not listed or not all(name in PROJECTIONS for name in listed):
        raise InputError(
            f'only is {briefly(only)}: expected a list of {", ".join(PROJECTIONS)}, for example ["down_proj"].'
        )
    return tuple(name for name in PROJECTIONS if name in listed)


def _layer_numbers(skip_layers: Any) -> tuple[int, ...]:
    listed: list[Any] = list(skip_layers) if isinstance(skip_layers, list | tuple | set | frozenset | range) else [None]
    if not all(type(index) is int and index >= 0 for index in listed):
        raise InputError(
            f"skip_layers is {briefly(skip_layers)}: expected a list of layer numbers from 0, for example [0, 1]."
        )
    return tuple(sorted(set(listed)))


def _one_of(name: str, value: str, known: Sequence[_Choice]) -> _Choice:
    for each in known:
        if each == value:
            return each
    raise InputError(f"{name} is {briefly(value)}: expected one of {', '.join(known)}.")
