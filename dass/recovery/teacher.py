"""What the dense model says of the windows: computed beside the student, or once and kept."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from dass.files import complete_file
from dass.recovery.body import Body
from dass.recovery.loss import divergence_sum, top_divergence_sum, top_log_probabilities


@dataclass(frozen=True)
class Target:
    """What is wanted of one batch.

    Attributes:
        divergence: given some tokens' logits (n, V) and how many of the batch's tokens come before them, the sum of
            their divergences from the teacher.
        layers: the teacher's decoder layers' outputs, where they were asked for.
    """

    divergence: Callable[[Tensor, int], Tensor]
    layers: tuple[Tensor, ...] = ()


class Teacher(Protocol):
    """Gives the target of some windows."""

    def target(self, rows: list[int], input_ids_BL: Tensor) -> Target:
        """The target of a batch.

        Args:
            rows: which windows these are, of all.
            input_ids_BL: their tokens, on the device.
        """
        ...


class LiveTeacher:
    """The dense model itself, in memory beside the student."""

    def __init__(self, model: PreTrainedModel, probe_L: Tensor, temperature: float, with_layers: bool) -> None:
        """Args: the model on its device; some tokens; as in `Recipe`; whether the layers' outputs are wanted."""
        self._body = Body(model.requires_grad_(False), probe_L)
        self._temperature, self._with_layers = temperature, with_layers

    @torch.no_grad()
    def target(self, rows: list[int], input_ids_BL: Tensor) -> Target:
        """As `Teacher`."""
        states_NH, layers = self._body.run(input_ids_BL, self._with_layers)

        def divergence(student_nV: Tensor, start: int) -> Tensor:
            with torch.no_grad():
                teacher_nV = self._body.logits(states_NH[start : start + len(student_nV)])
            return divergence_sum(teacher_nV, student_nV, self._temperature)

        return Target(divergence, layers)


class StoredTeacher:
    """What `store_teacher` has kept of the dense model."""

    def __init__(self, file: Path, temperature: float) -> None:
        """Args: the file; the temperature that it was made with."""
        self._file, self._temperature = file, temperature

    def target(self, rows: list[int], input_ids_BL: Tensor) -> Target:
        """As `Teacher`."""
        with safe_open(self._file, framework="pt") as kept:
            values, ids = kept.get_slice("values"), kept.get_slice("ids")
            values_NK, ids_NK = (
                torch.cat([each[row : row + 1] for row in rows]).flatten(0, 1).to(input_ids_BL.device)
                for each in (values, ids)
            )

        def divergence(student_nV: Tensor, start: int) -> Tensor:
            part = slice(start, start + len(student_nV))
            return top_divergence_sum(values_NK[part], ids_NK[part], student_nV, self._temperature)

        return Target(divergence)


@torch.no_grad()
def store_teacher(
    model: PreTrainedModel,
    windows_WL: Tensor,
    file: Path,
    top_k: int,
    temperature: float,
    on_window: Callable[[int], object],
) -> None:
    """Write the dense model's most likely tokens: `values` float32 and `ids` int32, (W, L, K) each.

    Args:
        model: on its device.
        windows_WL: all windows.
        file: complete or absent.
        top_k: K.
        temperature: as in `Recipe`.
        on_window: called with 1 behind each window.
    """
    body = Body(model, windows_WL[0].to(model.device))
    kept: list[tuple[Tensor, Tensor]] = []
    for window_L in windows_WL:
        states_NH, _ = body.run(window_L[None].to(model.device), False)
        found = [
            top_log_probabilities(body.logits(states_NH[part]), top_k, temperature) for part in body.slices(states_NH)
        ]
        values, ids = zip(*found, strict=True)
        kept.append((torch.cat(values).cpu(), torch.cat(ids).cpu()))
        on_window(1)
    values_WLK, ids_WLK = (torch.stack(each) for each in zip(*kept, strict=True))
    with complete_file(file) as temporary:
        save_file({"values": values_WLK, "ids": ids_WLK}, temporary)
