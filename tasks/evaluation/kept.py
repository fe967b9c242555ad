"""What the stages keep of every token, for DVC: artifacts/evaluation and artifacts/measures.

artifacts/evaluation/tokens.safetensors      `input_ids` (W, L), and each named text's under `texts.NAME`
artifacts/evaluation/losses.safetensors      the dense model's loss of every token, float32 (W, L − 1), by text
artifacts/evaluation/hidden/TEXT.safetensors its hidden states (N, H) in front of the head, of the first windows
artifacts/evaluation/prompts.json            prompts, and how the dense model continues them
artifacts/measures/losses.safetensors        the pruned model's losses
artifacts/measures/divergence.safetensors    `TEXT.kl` float32, `TEXT.top1` bool and `TEXT.shared` uint8 of every token
"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dass.measures.divergence import Comparison, Divergence
from dass.measures.losses import Slice
from tasks.evaluation.texts import MAIN

TOKENS, LOSSES, DIVERGENCE = "tokens.safetensors", "losses.safetensors", "divergence.safetensors"
HIDDEN_TOKENS = 4096
"""Whose hidden states are kept of one text; windows beyond are not compared. A token that is costs a third more."""


def key_of(name: str) -> str:
    """What a text's windows are called in TOKENS."""
    return "input_ids" if name == MAIN else f"texts.{name}"


def windows_of(evaluation: Path, name: str) -> Tensor:
    """A text's windows, LongTensor (W, L)."""
    with safe_open(evaluation / TOKENS, framework="pt") as file:
        windows_WL: Tensor = file.get_tensor(key_of(name))
    return windows_WL


class HiddenStates:
    """Collects the hidden states of the first windows of a text, HIDDEN_TOKENS at most and at least one window."""

    def __init__(self, windows_WL: Tensor) -> None:
        self._windows, self._scored = len(windows_WL), windows_WL.shape[1] - 1
        self._kept_NH: Tensor | None = None

    def __call__(self, piece: Slice) -> None:
        """Take a slice; they come in order."""
        if piece.hidden_nH is None:
            return
        if self._kept_NH is None:
            width, dtype = piece.hidden_nH.shape[1], piece.hidden_nH.dtype
            fitting = max(1, HIDDEN_TOKENS // (self._scored + 1))
            self._kept_NH = torch.empty(min(self._windows, fitting) * self._scored, width, dtype=dtype)
        place = self._kept_NH[piece.start : piece.start + len(piece.hidden_nH)]
        place.copy_(piece.hidden_nH[: len(place)])

    def save(self, evaluation: Path, name: str) -> None:
        """Write them, unless the model has none to give."""
        if self._kept_NH is not None:
            (evaluation / "hidden").mkdir(exist_ok=True)
            save_file({"hidden": self._kept_NH}, _hidden(evaluation, name))


def comparison(evaluation: Path, name: str) -> Comparison:
    """Compares with the dense model's hidden states, which are read slice by slice."""
    if not _hidden(evaluation, name).is_file():
        return Comparison(lambda _start, _stop: torch.empty(0), 0)
    with safe_open(_hidden(evaluation, name), framework="pt") as file:
        kept_NH = file.get_slice("hidden")
        tokens: int = kept_NH.get_shape()[0]
    read: Callable[[int, int], Tensor] = lambda start, stop: kept_NH[start:stop]  # noqa: E731
    return Comparison(read, tokens)


def save_losses(folder: Path, losses: dict[str, Tensor]) -> None:
    """Write token losses by text."""
    save_file({name: losses_WL.contiguous() for name, losses_WL in losses.items()}, folder / LOSSES)


def load_losses(folder: Path) -> dict[str, Tensor]:
    """Token losses by text, float32 (W, L − 1) each."""
    return load_file(folder / LOSSES)


def save_divergences(folder: Path, found: dict[str, Divergence | None]) -> None:
    """Write what was found of each text's tokens."""
    tensors: dict[str, Tensor] = {}
    for name, each in found.items():
        if each is not None:
            tensors |= {f"{name}.kl": each.kl_N, f"{name}.top1": each.top1_N, f"{name}.shared": each.shared_N}
    save_file(tensors, folder / DIVERGENCE)


def _hidden(evaluation: Path, name: str) -> Path:
    return evaluation / "hidden" / f"{name}.safetensors"
