"""A checkpoint that is scored: in memory where it fits, else layer by layer, each layer read once for a text."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dass.engine.layerwise import Buffering
from dass.engine.scoring import StreamedHalves
from dass.errors import NumericalError
from dass.measures.losses import Slice, token_losses
from dass.model.checkpoint import Checkpoint
from dass.model.memory import weights_fit
from dass.model.pretrained import load_model
from tasks.workspace.devices import choose_device
from tasks.workspace.progress import progress_bar
from tasks.workspace.settings import Engine

logger = logging.getLogger("dass")


class MeasuredModel:
    """A checkpoint.

    Attributes:
        model: as anyone else would load it; None: it is larger than memory.
    """

    def __init__(
        self, checkpoint: Path, engine: Engine, dtype: torch.dtype, model: PreTrainedModel | None = None
    ) -> None:
        """Load it, if it fits.

        Args:
            checkpoint: its folder.
            engine: where and how it computes.
            dtype: in which type.
            model: the checkpoint in memory already, on that device and in that type; None: it is loaded.

        Raises:
            InputError: transformers cannot read it, or would make up, drop or resize a weight.
        """
        self._checkpoint, self._engine, self._dtype = checkpoint, engine, dtype
        self._device = choose_device(engine.device)
        self.model = model
        if model is not None:
            return
        if weights_fit(Checkpoint(checkpoint), dtype, self._device):
            loaded = load_model(checkpoint, dtype)
            self.model = loaded.to(self._device)  # type: ignore[arg-type]
        else:
            logger.info("%s is larger than the free memory: it is measured layer by layer.", checkpoint.name)

    def losses(self, windows_WL: Tensor, description: str, on_slice: Callable[[Slice], object]) -> Tensor:
        """Loss of every token, as `token_losses`.

        Raises:
            InputError: it is larger than memory, and cannot be run layer by layer.
            NumericalError: the model computes NaN or infinity. The message names the checkpoint.
        """
        batch_tokens = None if self._engine.batch_tokens == "auto" else self._engine.batch_tokens
        parts = None
        if self.model is None:
            buffering = Buffering(batch_tokens, self._engine.hidden_states)
            parts = StreamedHalves(self._checkpoint, windows_WL, self._device, self._dtype, buffering)
        model = self.model if parts is None else parts.model
        assert model is not None
        try:
            with progress_bar(len(windows_WL), description, "windows") as advance:
                return token_losses(model, windows_WL, batch_tokens, advance, on_slice, parts)
        except NumericalError as error:
            raise NumericalError(f"{self._checkpoint.name} model: {error}") from None
        finally:
            if parts is not None:
                parts.close()
