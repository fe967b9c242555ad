"""A model that wears masks is the pruned checkpoint, and dense again afterwards."""

from pathlib import Path

import torch

from dass.masks.in_place import holds_as_stored, pruned_in_place
from dass.masks.mask_file import apply_to_checkpoint
from dass.masks.updates import Updates
from dass.model.checkpoint import Checkpoint
from dass.model.pretrained import load_model


def test_it_computes_what_the_pruned_checkpoint_does_and_is_dense_afterwards(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base, generator = Checkpoint(tiny_checkpoint), torch.Generator().manual_seed(0)
    names = [name for name in base.stored if ".mlp." in name]
    masks = {name: torch.rand(base.shape(name), generator=generator) < 0.5 for name in names}
    folder = tmp_path / "pruned"
    folder.mkdir()
    apply_to_checkpoint(base, masks, folder)
    model, pruned = load_model(tiny_checkpoint), load_model(folder)
    ids = torch.randint(0, 100, (2, 16), generator=generator)
    with torch.no_grad():
        dense = model(ids).logits
        with pruned_in_place(model, base, masks, Updates([])) as tensors:
            assert torch.equal(model(ids).logits, pruned(ids).logits)
            stored = dict(tensors)
        assert torch.equal(model(ids).logits, dense)
    written = Checkpoint(folder)
    assert set(stored) == set(written.stored)
    assert all(torch.equal(value, written.load([name])[name]) for name, value in stored.items())


def test_a_model_that_is_not_as_stored_is_seen(tiny_checkpoint: Path) -> None:
    base, model = Checkpoint(tiny_checkpoint), load_model(tiny_checkpoint)
    name = next(name for name in base.stored if ".mlp." in name)
    assert holds_as_stored(model, base, [name])
    assert not holds_as_stored(model, base, ["model.layers.0.mlp.experts"])
    with torch.no_grad():
        model.get_parameter(name).zero_()
    assert not holds_as_stored(model, base, [name])
