"""New values: kept ones of masked weights, and whole tensors that no mask names."""

from pathlib import Path

import pytest
import torch

from dass.errors import InputError
from dass.masks.mask_file import apply_to_checkpoint
from dass.masks.updates import named_updates, save_updates, updates_in
from dass.model.checkpoint import Checkpoint

GATE, QUERY, NORM = (
    f"model.layers.0.{name}.weight" for name in ("mlp.gate_proj", "self_attn.q_proj", "input_layernorm")
)


def written(folder: Path, seed: int, *names: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Values and masks, the values written to a folder."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {GATE: (64, 32), QUERY: (32, 32), NORM: (32,)}
    values = {name: torch.randn(shapes[name], generator=generator) for name in names}
    keep = {GATE: torch.randn(64, 32, generator=torch.Generator().manual_seed(9)) > 0}
    folder.mkdir(parents=True)
    save_updates(values, keep, folder / "000.safetensors")
    return values, keep


def record_of(folder: Path, keep: dict[str, torch.Tensor]) -> dict[str, object]:
    found = updates_in(folder)
    return {"digest": found.digest, "tuned": found.tuned(keep)}


def test_a_whole_tensor_comes_back_in_its_own_shape_and_a_masked_one_with_zeros(tmp_path: Path) -> None:
    values, keep = written(tmp_path / "a", 0, GATE, QUERY, NORM)
    found = updates_in(tmp_path / "a")
    assert found.tuned(keep) == [NORM, QUERY]
    for name in (QUERY, NORM):
        assert torch.equal(found.weight(name, None), values[name])
    assert torch.equal(found.weight(GATE, keep[GATE]), values[GATE] * keep[GATE])


def test_later_values_take_the_place_of_earlier_ones_and_each_is_held_to_its_record(tmp_path: Path) -> None:
    first, keep = written(tmp_path / "a", 0, GATE, NORM)
    second, _ = written(tmp_path / "b", 1, NORM, QUERY)
    a, b = (record_of(tmp_path / name, keep) for name in "ab")
    both, tuned = named_updates(keep, [(tmp_path / "a", a), (tmp_path / "b", b)])
    assert tuned == [NORM, QUERY]
    assert torch.equal(both[NORM], second[NORM])
    assert torch.equal(both.weight(GATE, keep[GATE]), first[GATE] * keep[GATE])
    for wrong in ({**b, "digest": a["digest"]}, None):
        with pytest.raises(InputError, match="b does not hold the updates"):
            named_updates(keep, [(tmp_path / "a", a), (tmp_path / "b", wrong)])
    with pytest.raises(InputError, match="b holds other whole tensors than the manifest names"):
        named_updates(keep, [(tmp_path / "b", {**b, "tuned": [NORM]})])


def test_a_whole_tensor_goes_into_the_checkpoint_where_it_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    values, keep = written(tmp_path / "a", 0, GATE, QUERY, NORM)
    base = Checkpoint(tiny_checkpoint)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="holds new values of .*, which the masks do not name"):
        apply_to_checkpoint(base, keep, tmp_path / "out", updates_in(tmp_path / "a"), tuned=[NORM])
    apply_to_checkpoint(base, keep, tmp_path / "out", updates_in(tmp_path / "a"), tuned=[NORM, QUERY])
    made = Checkpoint(tmp_path / "out")
    for name, weight in base.iterate():
        expected = values[name] if name in (QUERY, NORM) else weight
        expected = values[name] * keep[name] if name == GATE else expected
        assert torch.equal(made.load([name])[name], expected), name


def test_a_whole_tensor_of_another_shape_or_type_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = Checkpoint(tiny_checkpoint)
    for number, (value, told) in enumerate(
        ((torch.zeros(31), r"is \(31,\), and the base's \(32,\)"), (torch.zeros(32).half(), "another base"))
    ):
        save_updates({NORM: value}, {}, tmp_path / f"{number}.safetensors")
        with pytest.raises(InputError, match=told):
            updates_in(tmp_path).check_fit({}, base, [NORM])
        (tmp_path / f"{number}.safetensors").unlink()
