"""Re-fits inside the engine: what they are fitted to, what they are judged by, what is said of it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import dass
from dass.engine.layerwise import Buffering
from dass.engine.pruner import LayerwisePruner
from dass.errors import InputError
from dass.method.descent import Descent
from dass.method.plan import plan
from dass.model.decoder import Decoder
from dass.model.layer import LayerRunner
from tests.models import LAYERS, tiny_model, tiny_tokens
from tests.test_dass.matrices import check_exact

UPDATES = ["reconstruct", "reconstruct-mlp", "reconstruct-block"]
TOKENS = tiny_tokens(16, 32)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def layer_0(tokens: Tensor, **options: Any) -> Any:
    """What pruning the first layer of a tiny model gives."""
    return LayerwisePruner(Decoder(tiny_model()), tokens, plan(pattern="2:4", **options)).prune_layer(0)


def outputs(model: Any, tokens: Tensor) -> list[Tensor]:
    """Of every layer (B, T, H)."""
    seen: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, output: seen.append(output)) for layer in model.model.layers]
    model(input_ids=tokens)
    for hook in hooks:
        hook.remove()
    return seen


def relative(found: Tensor, wanted: Tensor) -> float:
    """Root mean square over tokens of the relative error."""
    return float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).square().mean().sqrt())


# --- windows held back


@pytest.mark.parametrize("update", UPDATES)
def test_masks_are_made_from_all_windows(update: str) -> None:
    some = layer_0(TOKENS, update=update, validation_share=0.25)
    every = layer_0(TOKENS, update="none")
    assert all(torch.equal(mask, every.keep[name]) for name, mask in some.keep.items())
    assert torch.equal(
        some.statistics["model.layers.0.mlp"].norms.z_I, every.statistics["model.layers.0.mlp"].norms.z_I
    )


@pytest.mark.parametrize("update", ["reconstruct", "reconstruct-block"])
def test_what_is_held_back_is_not_fitted(update: str) -> None:
    """Other tokens there: the same values, where there is one choice. Under "magnitude" masks look at no token."""
    options: dict[str, Any] = {"method": "magnitude", "update": update, "damping": 0.1, "epochs": 1}
    other = torch.cat([TOKENS[:12], tiny_tokens(4, 32, seed=7)])
    one, same = (layer_0(tokens, validation_share=0.25, **options) for tokens in (TOKENS, other))
    assert one.report.held_back_error != same.report.held_back_error
    assert one.report.fitted_error == pytest.approx(same.report.fitted_error, rel=1e-6)
    assert all(torch.equal(value, same.weights[name]) for name, value in one.weights.items())
    every = layer_0(TOKENS, **options)
    assert not all(torch.equal(value, every.weights[name]) for name, value in one.weights.items())


@pytest.mark.parametrize("update", UPDATES)
def test_the_error_on_windows_held_back_is_that_of_these_windows(update: str) -> None:
    model: Any = tiny_model()
    seen: list[tuple[Tensor, Tensor]] = []
    hook = model.model.layers[0].mlp.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    wanted = outputs(model, TOKENS)[0]
    hook.remove()
    what = plan(update=update, validation_share=0.25, epochs=2)
    report = LayerwisePruner(Decoder(model), TOKENS, what).prune_layer(0).report
    x_BTH, y_BTH = seen[0]
    for rows, told in ((slice(0, 12), report.fitted_error), (slice(12, 16), report.held_back_error)):
        if update == "reconstruct-block":
            expected = relative(outputs(model, TOKENS[rows])[0], wanted[rows])
        else:
            expected = float((model.model.layers[0].mlp(x_BTH[rows]) - y_BTH[rows]).norm() / y_BTH[rows].norm())
        assert told == pytest.approx(expected, rel=1e-3)
    assert report.refit_damping is not None


def test_no_refit_reports_no_error_of_one() -> None:
    none, fit = (layer_0(TOKENS, update=update).report for update in ("none", "reconstruct"))
    assert (none.fitted_error, none.held_back_error, none.refit_damping) == (None, None, None)
    assert fit.fitted_error is not None
    assert (fit.held_back_error, fit.refit_damping) == (None, None)


def test_training_on_few_tokens_does_no_harm_to_others() -> None:
    """Held back, the error is never larger than where the training started: at the closed form."""
    tokens = torch.cat([tiny_tokens(1, 8).repeat(4, 4), tiny_tokens(4, 32, seed=3)])
    wanted = outputs(tiny_model(), tokens[4:])[0]
    start, mlp, block = (layer_0(tokens, update=update, validation_share=0.5) for update in UPDATES)
    assert mlp.report.held_back_error <= start.report.held_back_error * (1 + 1e-5)
    model: Any = tiny_model()
    for name, value in start.weights.items():
        model.get_parameter(name).copy_(value)
    assert block.report.held_back_error <= relative(outputs(model, tokens[4:])[0], wanted) * (1 + 1e-5)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
@pytest.mark.parametrize("update", UPDATES)
def test_experts_are_refitted_with_windows_held_back(family: str, update: str) -> None:
    model = tiny_model(family, torch.bfloat16)
    report = dass.prune(model, TOKENS, update=update, validation_share=0.25, min_expert_tokens=8, epochs=1)
    check_exact(report.keep)
    for name, keep in report.keep.items():
        assert not model.get_parameter(name)[~keep].any()
    assert all(0.0 < (layer.held_back_error or 0.0) < 2.0 for layer in report.layers)


def test_one_window_is_refused_before_any_work() -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match="1 calibration window is left to fit to: expected 2 or more"):
        dass.prune(model, tiny_tokens(1, 16), update="reconstruct", validation_share=0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- the whole block


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "mixtral"])
def test_a_block_target_comes_nearer_to_the_dense_hidden_states_than_a_refit_of_its_mlp(family: str) -> None:
    wanted = outputs(tiny_model(family), TOKENS)
    errors = []
    for update in ("reconstruct", "reconstruct-block"):
        model = tiny_model(family)
        dass.prune(model, TOKENS, pattern="2:4", update=update)
        errors.append([relative(*pair) for pair in zip(outputs(model, TOKENS), wanted, strict=True)])
    assert all(block < mlp for mlp, block in zip(*errors, strict=True))


def test_its_error_is_told_and_more_epochs_lower_it() -> None:
    wanted = outputs(tiny_model(), TOKENS)
    told = []
    for epochs in (1, 8):
        model = tiny_model()
        report = dass.prune(model, TOKENS, pattern="2:4", update="reconstruct-block", epochs=epochs)
        told.append([layer.fitted_error or 0.0 for layer in report.layers])
        errors = [relative(*pair) for pair in zip(outputs(model, TOKENS), wanted, strict=True)]
        assert told[-1] == pytest.approx(errors, rel=1e-3)
    assert all(more < less for less, more in zip(*told, strict=True))


def test_the_windows_of_a_step_may_be_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are those of all of them at once. Sums in another order: to rounding, not to the bit."""
    whole, at_once = LayerRunner.mlp_half, list[int]()

    def watched(runner: LayerRunner, mid_BTH: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            at_once.append(len(mid_BTH))
        return whole(runner, mid_BTH)

    def gradients_of(batch_tokens: int) -> list[Tensor]:
        found: list[Tensor] = []

        def note(start: Any, _: Any, gradients: Any, *__: Any, **___: Any) -> Descent:
            found.extend(gradients({name: value.float() for name, value in start.items()}))
            return Descent(dict(start), 1.0, 1.0, 0)

        at_once.clear()
        monkeypatch.setattr("dass.engine.block.descend", note)
        what = plan("magnitude", update="reconstruct-block")
        LayerwisePruner(Decoder(tiny_model()), TOKENS, what, buffering=Buffering(batch_tokens)).prune_layer(0)
        return found

    monkeypatch.setattr(LayerRunner, "mlp_half", watched)
    together = gradients_of(1024)
    assert at_once == [16]
    in_parts = gradients_of(3 * 32)
    assert at_once == [3, 3, 3, 3, 3, 1]
    for one, other in zip(together, in_parts, strict=True):
        assert float((one - other).norm() / one.norm()) < 1e-4


def test_it_gives_the_same_bytes_again_and_leaves_the_rest_of_the_model() -> None:
    base, made = tiny_model().state_dict(), []
    for _ in range(2):
        model = tiny_model()
        takes = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        report = dass.prune(model, TOKENS, update="reconstruct-block", epochs=2, validation_share=0.25)
        assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == takes
        made.append(model.state_dict())
    for name, value in made[0].items():
        assert torch.equal(value, made[1][name])
        assert name in report.keep or torch.equal(value, base[name])


@pytest.mark.parametrize(("family", "around"), [("llama", 1), ("gemma3_text", 2)])
def test_norms_are_tuned_where_it_is_asked_for(family: str, around: int) -> None:
    def made(seed: int = 0) -> Any:
        model: Any = tiny_model(family, seed=seed)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.fill_(0.5)
        return model

    base, errors, changed = made().state_dict(), [], []
    for tune in (False, True):
        model = made()
        report = dass.prune(model, TOKENS, pattern="2:4", update="reconstruct-block", epochs=2, tune_norms=tune)
        errors.append([layer.fitted_error or 0.0 for layer in report.layers])
        state = model.state_dict()
        changed.append([name for name in state if name not in report.keep and not torch.equal(state[name], base[name])])
    assert changed[0] == []
    assert len(changed[1]) == around * LAYERS
    assert all(".layers." in name and "norm" in name and "input" not in name for name in changed[1])
    assert errors[1][0] < errors[0][0]


@pytest.mark.parametrize("tune_norms", [False, True])
def test_where_all_experts_starve_a_block_target_moves_the_norms_at_most(tune_norms: bool) -> None:
    dense: Any = tiny_model("mixtral").state_dict()
    model = tiny_model("mixtral")
    report = dass.prune(model, TOKENS, update="reconstruct-block", min_expert_tokens=10_000, tune_norms=tune_norms)
    moved = set()
    for name, value in model.state_dict().items():
        keep = report.keep.get(name, torch.ones_like(value, dtype=torch.bool))
        if not torch.equal(value, dense[name].masked_fill(~keep, 0.0)):
            moved.add(name.rpartition("layers.")[2].partition(".")[2])
    assert moved == ({"post_attention_layernorm.weight"} if tune_norms else set())


def test_an_expert_that_starves_keeps_its_values_under_a_block_target() -> None:
    base, model = tiny_model("mixtral").state_dict(), tiny_model("mixtral")
    report = dass.prune(model, tiny_tokens(), min_expert_tokens=32, update="reconstruct-block", epochs=2)
    for layer in report.layers:
        assert 0 < len(layer.starved_experts) < 4
        for expert in range(4):
            name = f"model.layers.{layer.layer}.mlp.experts.down_proj"
            masked = base[name][expert].masked_fill(~report.keep[name][expert], 0.0)
            same = torch.equal(model.state_dict()[name][expert], masked)
            assert same == (f"mlp.experts.{expert}" in layer.starved_experts)


def test_biases_are_no_hindrance_to_it() -> None:
    report = dass.prune(tiny_model("llama", mlp_bias=True), TOKENS, update="reconstruct-block", epochs=2)
    assert all(0.0 < (layer.fitted_error or 0.0) < 1.0 for layer in report.layers)


def test_a_layer_without_halves_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dass.model.layer.LayerRunner._find_split", lambda *_: None)
    with pytest.raises(InputError, match=r"model\.layers\.0 does not run as attention and MLP.*reconstruct-mlp"):
        layer_0(TOKENS, update="reconstruct-block")


def test_norms_without_weights_cannot_be_tuned() -> None:
    with pytest.raises(InputError, match=r"tune_norms is true, and model\.layers\.0 has no norm with weights"):
        dass.prune(tiny_model("olmo"), TOKENS, update="reconstruct-block", tune_norms=True)


@pytest.mark.parametrize("update", ["reconstruct-mlp", "reconstruct-block"])
def test_where_no_gradient_can_be_had_it_is_refused(update: str) -> None:
    with torch.inference_mode():
        model = tiny_model()
        with pytest.raises(InputError, match=f'update is "{update}" under torch.inference_mode'):
            dass.prune(model, TOKENS, update=update)
        dass.prune(model, TOKENS, update="reconstruct")


def test_a_start_that_training_cannot_beat_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate that diverges: the layer keeps the values of the closed form."""
    start = layer_0(TOKENS, update="reconstruct")
    monkeypatch.setattr("dass.engine.block.LEARNING_RATE", 1e6)
    found = layer_0(TOKENS, update="reconstruct-block")
    assert all(torch.equal(value, start.weights[name]) for name, value in found.weights.items())
