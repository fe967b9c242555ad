"""Variants judged beside each other against transformers' own forward of each, pruned as a whole model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import dass
from dass.engine.dense import dense_statistics, make_from_statistics
from dass.engine.layerwise import Buffering, wanted_by
from dass.engine.variants import Changed, Moved, Variant, Variants
from dass.errors import InputError
from dass.method.plan import Plan, plan
from dass.model.decoder import Decoder
from dass.model.pretrained import load_model
from dass.model.streaming import StreamedDecoder
from tests.models import VOCABULARY, save_tiny_checkpoint, tiny_model


def _windows(seed: int, count: int = 5) -> Tensor:
    return torch.randint(2, VOCABULARY, (count, 16), generator=torch.Generator().manual_seed(seed))


def _by_transformers(dense: torch.nn.Module, pruned: torch.nn.Module, windows: Tensor) -> Moved:
    with torch.no_grad():
        one, other = (model(input_ids=windows).logits[:, :-1].double().log_softmax(-1) for model in (dense, pruned))
    kl = (one.exp() * (one - other)).sum(-1).mean().item()
    loss = -other.gather(-1, windows[:, 1:, None]).mean().item()
    return Moved(kl, loss, (one.argmax(-1) == other.argmax(-1)).double().mean().item())


def _variant(decoder: Decoder, calibration: Tensor, what: Plan, layers: set[int]) -> Variant:
    statistics = list(dense_statistics(decoder, calibration, wanted_by(what)))

    def change(index: int) -> Changed | None:
        if index not in layers:
            return None
        made = make_from_statistics(decoder, index, statistics[index], what, what.pattern, what.score)
        return Changed(made.keep, made.values)

    return change


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3", "qwen2_moe"])
def test_each_variant_predicts_as_the_model_pruned_that_way(family: str, tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path, family)
    decoder = StreamedDecoder(tmp_path, torch.device("cpu"))
    calibration, held_out = _windows(1), _windows(2)
    plans = [
        plan("dass", pattern="2:4", propagation="dense"),
        plan("wanda", 0.5, propagation="dense", only=["down_proj"]),
    ]
    judge = Variants(decoder, held_out, Buffering(batch_tokens=32))
    found = judge.judge([_variant(decoder, calibration, each, {0, 1, 2}) for each in plans])

    dense = load_model(tmp_path)
    for each, moved in zip(plans, found, strict=True):
        pruned = load_model(tmp_path)
        dass.prune(
            pruned,
            calibration,
            each.method,
            sparsity=each.pattern.sparsity,
            pattern=str(each.pattern),
            propagation="dense",
            only=each.only,
        )
        expected = _by_transformers(dense, pruned, held_out)
        assert moved.kl == pytest.approx(expected.kl, rel=1e-3)
        assert moved.loss == pytest.approx(expected.loss, rel=1e-4)
        assert moved.top1_agreement == pytest.approx(expected.top1_agreement, abs=0.03)
    assert judge.dense_loss == pytest.approx(_by_transformers(dense, dense, held_out).loss, rel=1e-4)
    assert found[0] != found[1]


def test_nobody_changes_a_layer_in_front_and_the_windows_go_there_once() -> None:
    decoder = Decoder(tiny_model())
    calibration, what = _windows(1), plan("wanda", pattern="2:4", propagation="dense")
    judge = Variants(decoder, _windows(2))
    asked: list[int] = []
    of_last = _variant(decoder, calibration, what, {2})

    def noted(index: int) -> Changed | None:
        asked.append(index)
        return of_last(index)

    alone = judge.judge([of_last])
    beside = judge.judge([noted, lambda _: None], first=2)
    assert asked == [2]
    assert beside[0] == alone[0]
    assert (beside[1].kl, beside[1].top1_agreement) == (0.0, 1.0)
    assert beside[1].loss == pytest.approx(judge.dense_loss)


def test_every_layer_is_dense_again() -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    decoder = Decoder(model)
    what = plan("magnitude", 0.7, propagation="dense")
    Variants(decoder, _windows(2)).judge([_variant(decoder, _windows(1), what, {0, 1, 2})])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_windows_of_one_token_predict_nothing() -> None:
    with pytest.raises(InputError, match="2 or more tokens"):
        Variants(Decoder(tiny_model()), torch.zeros(3, 1, dtype=torch.long))
