"""What methods, layouts and projections are called, and which weights compete (arXiv 2405.01943, section 3).

No torch here: whoever only reads settings does not wait for it.
"""

from typing import Literal

from dass.method.pattern import Pattern

Method = Literal["dass", "wanda", "magnitude", "sparsegpt"]
Layout = Literal["paper", "contraction", "transposable"]
Projection = Literal["gate_proj", "up_proj", "down_proj"]

PROJECTIONS: tuple[Projection, ...] = ("gate_proj", "up_proj", "down_proj")
DEFAULT_ALPHA = 0.5
"""Exponent of the neuron norm in the gate and up scores, the paper's published value."""


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
