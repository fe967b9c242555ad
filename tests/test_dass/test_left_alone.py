"""`only` and `skip_layers`: what is left alone keeps its bits, and the rest is pruned as it would be anyway."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import dass
from dass.engine.fits import check_fits
from dass.errors import InputError
from dass.files import digest_of, read_json
from dass.masks.mask_file import MaskFile
from dass.masks.proof import ProofError, prove_patterns, prove_weights
from dass.method.methods import PROJECTIONS
from dass.method.plan import Plan, plan
from dass.model.checkpoint import Checkpoint
from dass.model.decoder import Decoder
from tests.models import LAYERS, save_tiny_checkpoint, tiny_model, tiny_tokens

HOWS: list[dict[str, Any]] = [
    {},
    {"pattern": "2:4"},
    {"method": "wanda", "pattern": "4:8", "refine": "swaps"},
    {"method": "magnitude"},
    {"method": "sparsegpt", "pattern": "2:4"},
    {"pattern": "2:4", "layout": "transposable"},
    {"update": "reconstruct"},
    {"update": "reconstruct", "validation_share": 0.3},
    {"pattern": "2:4", "propagation": "dense", "update": "reconstruct"},
    {"method": "sparsegpt", "propagation": "dense"},
    {"allocation": "owl"},
    {"method": "auto", "auto_windows": 1, "auto_budget": 1},
]
SKIPPED: list[dict[str, Any]] = [*HOWS, {"update": "reconstruct-mlp"}, {"update": "reconstruct-block", "epochs": 1}]


def called(how: dict[str, Any]) -> str:
    return " ".join(map(str, how.values())) or "dass"


@pytest.mark.parametrize("how", HOWS, ids=called)
@pytest.mark.parametrize("only", [("down_proj",), ("gate_proj", "up_proj")], ids="+".join)
def test_only_these_matrices_change(how: dict[str, Any], only: tuple[str, ...]) -> None:
    before, model = tiny_model().state_dict(), tiny_model()
    report = dass.prune(model, tiny_tokens(), **how, only=list(only))
    for name, after in model.state_dict().items():
        pruned = any(f".{each}." in name for each in only)
        assert torch.equal(after, before[name]) is not pruned, name
        if ".mlp." in name:
            assert bool(report.keep[name].all()) is not pruned
    for layer in report.layers:
        assert {name for name, share in layer.sparsity.items() if share} == set(only)
        assert not any(layer.runs_2_4[name] for name in PROJECTIONS if name not in only)
    assert report.sparsity == pytest.approx(0.5 * len(only) / 3, abs=0.01)


@pytest.mark.parametrize("how", SKIPPED, ids=called)
def test_a_skipped_layer_keeps_its_bits_and_the_next_is_pruned(how: dict[str, Any]) -> None:
    before, model = tiny_model().state_dict(), tiny_model()
    report = dass.prune(model, tiny_tokens(), **how, skip_layers=[1])
    for name, after in model.state_dict().items():
        changed = ".mlp." in name and ".layers.1." not in name
        assert torch.equal(after, before[name]) is not changed, name
    assert [layer.pattern == "none" for layer in report.layers] == [False, True, False]
    assert report.layers[1].relative_error in (0.0, None)
    assert report.layers[1].fitted_error is None
    assert report.sparsity == pytest.approx(0.5 * 2 / 3, abs=0.01)


def test_the_others_are_pruned_as_they_would_be_without() -> None:
    """A first layer's masks do not depend on what becomes of later ones, nor down's on whether gate and up go."""
    whole = dass.prune(tiny_model(), tiny_tokens()).keep
    choices: tuple[dass.PlanOptions, ...] = ({"skip_layers": [1, 2]}, {"only": ["down_proj"]})
    for options in choices:
        keep = dass.prune(tiny_model(), tiny_tokens(), **options).keep
        name = "model.layers.0.mlp.down_proj.weight"
        assert torch.equal(keep[name], whole[name])


@pytest.mark.parametrize("family", ["phi3", "mixtral"])
def test_a_matrix_that_shares_its_parameter_is_left_alone_in_it(family: str) -> None:
    before, model = tiny_model(family).state_dict(), tiny_model(family)
    report = dass.prune(model, tiny_tokens(), only=["up_proj"], update="reconstruct", min_expert_tokens=0)
    name = next(name for name in report.keep if "gate_up" in name)
    gate, up = report.keep[name].chunk(2, dim=-2)
    assert bool(gate.all())
    assert 0.4 < float(up.float().mean()) < 0.6
    after = dict(model.named_parameters())[name].detach()
    assert torch.equal(after.chunk(2, dim=-2)[0], before[name].chunk(2, dim=-2)[0])


def test_owl_keeps_its_total_among_the_layers_that_are_pruned() -> None:
    report = dass.prune(tiny_model(), tiny_tokens(), allocation="owl", skip_layers=[0])
    shares = [layer.sparsity["gate_proj"] for layer in report.layers]
    assert shares[0] == 0.0
    assert sum(shares[1:]) / 2 == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "how",
    [{"only": ["down_proj"], "pattern": "2:4"}, {"skip_layers": [0], "method": "sparsegpt"}, {"skip_layers": [2]}],
)
def test_what_was_left_alone_is_proved_to_be_so(how: dict[str, Any], tmp_path: Path) -> None:
    base = save_tiny_checkpoint(tmp_path / "base")
    report = dass.prune_checkpoint(base, tmp_path / "out", tiny_tokens(), **how, masks=tmp_path / "masks")
    masks = MaskFile(tmp_path / "masks" / "masks.safetensors")
    if "method" not in how:
        prove_weights(Checkpoint(base), Checkpoint(tmp_path / "out"), masks, None)
    settings = read_json(tmp_path / "masks" / "dass.json")["settings"]
    assert settings == read_json(tmp_path / "out" / "dass.json")["settings"]
    manifest = {"settings": {"prune": settings}, "layers": [asdict(layer) for layer in report.layers]}
    prove_patterns(manifest, masks)
    for key in ("only", "skip_layers"):  # the same masks under a record that leaves nothing alone, or something else
        other = {**settings, key: ["gate_proj"] if key == "only" else [1]}
        with pytest.raises(ProofError):
            prove_patterns({**manifest, "settings": {"prune": other}}, masks)


def test_a_plan_is_called_by_what_it_leaves_alone() -> None:
    assert plan(only=["up_proj", "down_proj", "gate_proj"], skip_layers=[]) == plan()
    some = plan(only=("down_proj",), skip_layers=range(2))
    assert (some.named["only"], some.named["skip_layers"]) == (["down_proj"], [0, 1])
    assert len({digest_of(each.named) for each in (plan(), some, plan(skip_layers=[1]))}) == 3
    assert isinstance(some.of_layer(0), Plan)
    assert (some.of_layer(0).only, some.of_layer(2)) == ((), some)


def test_sizes_that_no_group_of_a_pruned_matrix_lies_along_need_not_be_tiled() -> None:
    decoder = Decoder(tiny_model(hidden_size=36, num_attention_heads=2, head_dim=18))  # 36 is no multiple of 8
    with pytest.raises(InputError, match="the hidden size"):
        check_fits(decoder, plan("wanda", None, "4:8"))
    check_fits(decoder, plan("wanda", None, "4:8", only=["down_proj"]))
    with pytest.raises(InputError, match="the hidden size"):
        check_fits(decoder, plan("wanda", None, "4:8", skip_layers=[0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "down_proj"}, r"only is 'down_proj': expected a list of gate_proj, up_proj, down_proj"),
        ({"only": []}, r"only is \[\]: expected a list"),
        ({"only": ["down"]}, r"only is \['down'\]: expected a list"),
        ({"skip_layers": 1}, "skip_layers is 1: expected a list of layer numbers from 0"),
        ({"skip_layers": [-1]}, r"skip_layers is \[-1\]: expected"),
        ({"skip_layers": [True]}, r"skip_layers is \[True\]: expected"),
        ({"skip_layers": "01"}, "skip_layers is '01': expected"),
        ({"skip_layers": [LAYERS]}, "skip_layers names 3: expected layers of the model, 0 to 2"),
        ({"skip_layers": [0, 1, 2]}, "skip_layers names all 3 layers: nothing is left to prune"),
        (
            {"only": ["down_proj"], "update": "reconstruct-mlp"},
            r'update is "reconstruct-mlp" and only \[.down_proj.\]: it trains gate, up and down together',
        ),
        ({"only": ["up_proj"], "update": "reconstruct-block"}, 'update is "reconstruct-block" and only'),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        dass.prune(tiny_model(), tiny_tokens(), **options)
    assert "\n" not in str(caught.value)
