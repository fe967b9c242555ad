"""A checkpoint larger than memory, scored: every layer is read once, and all windows go through it.

W windows, B windows of a batch, L tokens of a window, H hidden size.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dass.engine.layerwise import Buffering, LayerwisePass, memory_advice
from dass.measures.halves import Halves
from dass.model.streaming import StreamedDecoder


class StreamedHalves(Halves):
    """Body and head of a checkpoint whose layers are in memory one at a time; close it when all windows are scored.

    The body of some windows is what is outside the layers, run by the model's own code: the layers answer with the
    hidden states that their turn has left behind.
    """

    def __init__(
        self,
        folder: Path,
        windows_WL: Tensor,
        device: torch.device,
        dtype: torch.dtype,
        buffering: Buffering | None = None,
    ) -> None:
        """Send the windows through the layers, then read what is outside them.

        Args:
            folder: a transformers checkpoint folder with safetensors.
            windows_WL: token ids, LongTensor (W, L); no others can be scored.
            device: where layers compute.
            dtype: type to compute in.
            buffering: how hidden states are held.

        Raises:
            InputError: a checkpoint or windows that cannot be run layer by layer.
        """
        self._decoder = StreamedDecoder(folder, device, dtype)
        walk = LayerwisePass(self._decoder, windows_WL, buffering)
        for index in range(len(self._decoder)):
            with memory_advice(), torch.no_grad(), self._decoder.layer(index) as layer:
                walk.advance(layer)
        self._states = walk.hidden
        self._outside = self._decoder.outside()
        self._outside.__enter__()
        answer = type(self._run(windows_WL[:1], 0))
        super().__init__(self._decoder.model, self._decoder.model.base_model, answer)

    @property
    def device(self) -> torch.device:
        """Where the layers compute."""
        return self._decoder.device

    def hidden(self, input_ids_WL: Tensor, start: int) -> Tensor:
        """Hidden states as the head takes them of the windows from `start` on."""
        states_BLH: Tensor = self._run(input_ids_WL, start).last_hidden_state
        return states_BLH

    def close(self) -> None:
        """Give back the hidden states and what is outside the layers."""
        self._outside.__exit__(None, None, None)
        self._states.close()

    def _run(self, input_ids_BL: Tensor, start: int) -> Any:
        states_BLH = self._states.read(slice(start, start + len(input_ids_BL)))
        return self._decoder.behind_layers(input_ids_BL, states_BLH)
