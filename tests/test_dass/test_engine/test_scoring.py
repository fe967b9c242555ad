"""A checkpoint scored layer by layer against the same one in memory."""

from pathlib import Path

import pytest
import torch

from dass.engine.layerwise import Buffering
from dass.engine.scoring import StreamedHalves
from dass.measures.losses import token_losses
from dass.model.pretrained import load_model
from tests.models import EVERY_FAMILY, save_tiny_checkpoint, tiny_tokens

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_losses_are_those_of_the_model_in_memory(tmp_path: Path, family: str) -> None:
    folder, windows_WL = save_tiny_checkpoint(tmp_path, family), tiny_tokens(samples=5, length=16)
    parts = StreamedHalves(folder, windows_WL, CPU, torch.float32, Buffering(batch_tokens=32))
    found = token_losses(parts.model, windows_WL, 48, parts=parts)
    parts.close()
    torch.testing.assert_close(found, token_losses(load_model(folder, torch.float32), windows_WL), rtol=1e-4, atol=1e-4)
    assert all(parameter.is_meta for parameter in parts.model.parameters())
