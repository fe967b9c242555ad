"""The stored names of a parameter are those that transformers assembles it from."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import Chunk, Transpose, WeightConverter

import tests.unlisted  # noqa: F401  registers itself
from dass.errors import InputError
from dass.masks.mask_file import apply_to_checkpoint
from dass.model.checkpoint import Checkpoint
from dass.model.decoder import Decoder
from dass.model.names import Piece, StoredNames
from dass.model.streaming import StreamedDecoder
from tests.models import EVERY_FAMILY, HIDDEN, INTERMEDIATE, MOE_FAMILIES, tiny_model

CPU = torch.device("cpu")
EXPERTS = "model.layers.1.mlp.experts"


def names_of(folder: Path, model: PreTrainedModel) -> StoredNames:
    return StoredNames({name: place.shape for name, place in Checkpoint(folder).stored.items()}, model)


def random_masks(decoder: Decoder) -> dict[str, torch.Tensor]:
    """A mask for every matrix of every MLP, experts and shared experts too."""
    generator = torch.Generator().manual_seed(0)
    return {
        f"{decoder.layer_name(index)}.{name}": torch.rand(parameter.shape, generator=generator) < 0.5
        for index in range(len(decoder))
        for name, parameter in decoder.structure(index).named_parameters()
        if "_proj" in name and "self_attn" not in name
    }


def test_an_expert_is_a_slice_of_the_merged_parameter(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    model.save_pretrained(tmp_path)
    names = names_of(tmp_path, model)
    stored = "model.layers.1.block_sparse_moe.experts"
    pieces = names.pieces(f"{EXPERTS}.gate_up_proj")
    assert len(pieces) == 8
    assert Piece(f"{stored}.3.w1.weight", (3, slice(0, INTERMEDIATE))) in pieces
    assert Piece(f"{stored}.3.w3.weight", (3, slice(INTERMEDIATE, 2 * INTERMEDIATE))) in pieces
    assert names.pieces(f"{EXPERTS}.down_proj") == [
        Piece(f"{stored}.{expert}.w2.weight", (expert,)) for expert in range(4)
    ]
    assert names.pieces("model.layers.1.mlp.gate.weight") == [Piece("model.layers.1.block_sparse_moe.gate.weight", ())]


def test_experts_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    model = tiny_model("qwen3_moe", num_experts=11)
    model.save_pretrained(tmp_path)
    pieces = names_of(tmp_path, model).pieces(f"{EXPERTS}.down_proj")
    assert [piece.at for piece in pieces] == [(expert,) for expert in range(11)]
    assert all(f".experts.{piece.at[0]}." in piece.stored for piece in pieces)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_parameter_is_made_of_its_pieces(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    names, checkpoint = names_of(tmp_path, model), Checkpoint(tmp_path)
    for name, parameter in model.named_parameters():
        for piece in names.pieces(name):
            assert torch.equal(parameter[piece.at], checkpoint.load([piece.stored])[piece.stored]), piece


def test_a_checkpoint_of_the_base_model_alone_has_no_prefix(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    base = model.base_model
    assert isinstance(base, PreTrainedModel)
    base.save_pretrained(tmp_path)
    names = names_of(tmp_path, model)
    assert names.pieces("model.layers.0.self_attn.q_proj.weight") == [Piece("layers.0.self_attn.q_proj.weight", ())]
    assert names.pieces(f"{EXPERTS}.down_proj")[0].stored == "layers.1.block_sparse_moe.experts.0.w2.weight"


def test_tied_weights_are_found_under_either_name(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    assert names_of(tmp_path, model).pieces("lm_head.weight") == [Piece("model.embed_tokens.weight", ())]
    shapes = {"lm_head.weight": tuple(model.lm_head.weight.shape)}
    assert StoredNames(shapes, model).pieces("model.embed_tokens.weight") == [Piece("lm_head.weight", ())]


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_masks_survive_the_way_to_stored_names_and_back(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    decoder = StreamedDecoder(tmp_path, CPU)
    masks = random_masks(decoder)
    stored = decoder.to_stored(masks)
    checkpoint = Checkpoint(tmp_path)
    assert all(mask.shape == checkpoint.shape(name) and mask.is_contiguous() for name, mask in stored.items())
    back: dict[str, torch.Tensor] = {}
    for index in range(len(decoder)):
        back |= decoder.from_stored(index, stored)
    assert back.keys() == masks.keys()
    assert all(torch.equal(back[name], mask) for name, mask in masks.items())


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_a_pruned_mixture_of_experts_reloads_with_the_masked_weights(family: str, tmp_path: Path) -> None:
    base, pruned = tmp_path / "base", tmp_path / "pruned"
    tiny_model(family).save_pretrained(base, max_shard_size="30KB")
    decoder = StreamedDecoder(base, CPU)
    masks = random_masks(decoder)
    pruned.mkdir()
    apply_to_checkpoint(Checkpoint(base), decoder.to_stored(masks), pruned)
    (pruned / "config.json").write_bytes((base / "config.json").read_bytes())
    expected = AutoModelForCausalLM.from_pretrained(base).state_dict()
    for name, value in AutoModelForCausalLM.from_pretrained(pruned).state_dict().items():
        mask = masks.pop(name, None)
        masked = expected[name] if mask is None else expected[name].masked_fill(~mask, 0.0)
        assert torch.equal(value, masked), name
    assert not masks


def test_a_model_in_memory_keeps_its_own_names() -> None:
    decoder = Decoder(tiny_model("mixtral"))
    masks = random_masks(decoder)
    assert decoder.to_stored(masks) == masks
    assert decoder.from_stored(1, masks).keys() == {f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj"}


def test_a_layer_with_a_piece_missing_is_left_out(tmp_path: Path) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path)
    decoder = StreamedDecoder(tmp_path, CPU)
    stored = decoder.to_stored(random_masks(decoder))
    del stored["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    assert decoder.from_stored(1, stored).keys() == {f"{EXPERTS}.down_proj"}


def test_a_missing_expert_is_refused(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    model.save_pretrained(tmp_path)
    shapes = {name: place.shape for name, place in Checkpoint(tmp_path).stored.items()}
    del shapes["model.layers.1.block_sparse_moe.experts.2.w2.weight"]
    with pytest.raises(InputError, match=r"experts\.down_proj: .* 3 tensor.* \(3, 32, 64\), .* \(4, 32, 64\)"):
        StoredNames(shapes, model).pieces(f"{EXPERTS}.down_proj")


def test_an_expert_of_another_size_is_refused(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    model.save_pretrained(tmp_path)
    shapes = {name: place.shape for name, place in Checkpoint(tmp_path).stored.items()}
    shapes["model.layers.1.block_sparse_moe.experts.2.w2.weight"] = (HIDDEN, INTERMEDIATE - 8)
    with pytest.raises(InputError, match=r"experts\.2\.w2\.weight makes \(32, 56\).* cannot be joined"):
        StoredNames(shapes, model).pieces(f"{EXPERTS}.down_proj")


def test_a_parameter_the_checkpoint_lacks_is_refused() -> None:
    with pytest.raises(InputError, match=r"does not hold model\.norm\.weight of LlamaForCausalLM"):
        StoredNames({}, tiny_model()).pieces("model.norm.weight")


@pytest.fixture
def other_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules for LLaMA that compute values: one tensor is stored transposed, two in one."""
    rules = [
        WeightConverter("mlp.down_T.weight", "mlp.down_proj.weight", [Transpose(0, 1)]),
        WeightConverter("mlp.both.weight", ["mlp.gate_proj.weight", "mlp.up_proj.weight"], [Chunk(0)]),
    ]
    monkeypatch.setattr("dass.model.names.get_model_conversion_mapping", lambda model: rules)


@pytest.mark.usefixtures("other_rules")
@pytest.mark.parametrize(
    ("parameter", "operation"), [("down_proj", "Transpose"), ("gate_proj", "Chunk"), ("up_proj", "Chunk")]
)
def test_a_rule_that_computes_is_refused_by_name(parameter: str, operation: str) -> None:
    shapes = {
        "model.layers.0.mlp.down_T.weight": (INTERMEDIATE, HIDDEN),
        "model.layers.0.mlp.both.weight": (2 * INTERMEDIATE, HIDDEN),
    }
    names = StoredNames(shapes, tiny_model())
    with pytest.raises(InputError, match=rf"layers\.0\.mlp\.{parameter}\.weight is computed from .* with {operation}"):
        names.pieces(f"model.layers.0.mlp.{parameter}.weight")


def test_a_model_nobody_listed_has_its_own_names(tmp_path: Path) -> None:
    tiny_model("unlisted").save_pretrained(tmp_path)
    decoder = StreamedDecoder(tmp_path, CPU)
    masks = {"trunk.blocks.1.feed.drop.weight": torch.ones(HIDDEN, INTERMEDIATE, dtype=torch.bool)}
    assert decoder.to_stored(masks).keys() == decoder.from_stored(1, masks).keys() == masks.keys()
