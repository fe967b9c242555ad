"""What methods, layouts and projections are called, and which weights compete (arXiv 2405.01943, section 3).

No torch here: whoever only reads settings does not wait for it.
"""

from dataclasses import dataclass
from typing import Literal

from dass.method.pattern import Pattern

Method = Literal["dass", "wanda", "magnitude", "sparsegpt"]
Asked = Literal[Method, "auto"]
"""What may be asked for: one method for all layers, or for each layer the one that serves the whole model best."""
Layout = Literal["paper", "contraction", "transposable"]
Projection = Literal["gate_proj", "up_proj", "down_proj"]

PROJECTIONS: tuple[Projection, ...] = ("gate_proj", "up_proj", "down_proj")
DEFAULT_ALPHA = 0.5
"""Exponent of the neuron norm in the gate and up scores, the paper's published value."""
CANDIDATE_ALPHAS = (0.5, 1.0, 1.5)
"""DaSS's exponents that `auto` tries, besides the one that is set."""


@dataclass(frozen=True)
class Score:
    """What a layer's weights are chosen by.

    Attributes:
        method: never "auto".
        alpha: DaSS's exponent; None for the methods that have none.
    """

    method: Method
    alpha: float | None = None

    def __str__(self) -> str:
        """As tables name it: "wanda", "dass α 0.5"."""
        return self.method if self.alpha is None else f"{self.method} α {self.alpha:g}"


def candidate_scores(alpha: float) -> list[Score]:
    """What `auto` chooses from, an order that decides between equals: Wanda, then DaSS by its exponent."""
    return [Score("wanda"), *(Score("dass", each) for each in sorted({*CANDIDATE_ALPHAS, float(alpha)}))]


def competition_axis(projection: Projection, method: Method, pattern: Pattern, layout: Layout = "paper") -> int | None:
    """The axis along which weights compete: 0 within a column, 1 within a row, None across the whole matrix.

    DaSS always competes along the intermediate axis I: rows of gate and up, columns of down. Wanda competes inside
    an output row. Magnitude ranks a whole matrix when unstructured and rows when N:M; SparseGPT ranks blocks of columns
    when unstructured and rows when N:M. With the layout "contraction" every method's groups lie inside an output row;
    with "transposable" gate and up are chosen in 4×4 blocks instead.
    """
    if method == "dass" and layout != "contraction":
        return 1 if projection == "down_proj" else 0
    if method in ("magnitude", "sparsegpt") and pattern.is_unstructured:
        return None
    return 1
