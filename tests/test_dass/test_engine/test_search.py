"""`method: auto`: what cannot lose, because a judge that sees the end decides."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import dass
from dass.engine.choice import Choice, Proposal
from dass.engine.search import Search
from dass.engine.trial import output_error, stream_error
from dass.engine.windows import hold_back
from dass.errors import InputError
from dass.files import read_json, sha256_file
from dass.method.methods import Score
from dass.method.plan import plan
from tests.models import LAYERS, save_tiny_checkpoint, tiny_model, tiny_tokens
from tests.test_dass.test_engine.test_run import in_a_process

TOKENS = tiny_tokens(10, 16)
SINGLE = ["wanda", "dass α 0.5", "dass α 1", "dass α 1.5"]
MIXES = ["mix by output error", "mix by stream error"]


def auto(model: PreTrainedModel, **options: Any) -> dass.PruneReport:
    return dass.prune(model, TOKENS, **{"method": "auto", "auto_budget": 4, **options})


def kl_by_hand(dense: PreTrainedModel, pruned: PreTrainedModel) -> float:
    """KL(dense ‖ pruned) over every token of the held-back windows, by whole forwards."""
    windows = hold_back(TOKENS, plan("auto"))[1]
    with torch.no_grad():
        p, q = (model(input_ids=windows).logits.double().log_softmax(-1) for model in (dense, pruned))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"pattern": "2:4", "layout": "transposable", "update": "reconstruct"}),
        ("qwen2", {"pattern": "4:8", "propagation": "dense", "alpha": 0.7}),
        ("llama", {"pattern": "2:4", "propagation": "dense", "update": "reconstruct"}),
        ("gemma2", {"pattern": "2:4", "update": "reconstruct"}),
        ("mixtral", {"allocation": "owl", "min_expert_tokens": 8}),
        ("phi3", {"pattern": "1:4"}),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value.values())) or "defaults",
)
def test_nothing_that_was_tried_is_nearer_to_dense_than_what_comes_out(family: str, options: dict[str, Any]) -> None:
    dense, model = tiny_model(family), tiny_model(family)
    report = auto(model, **options)
    choice = report.choice
    assert choice is not None
    names = [each.name for each in choice.proposals]
    singles = [str(score) for score in choice.candidates]
    assert singles == (SINGLE if "alpha" not in options else [*SINGLE[:2], "dass α 0.7", *SINGLE[2:]])
    assert names[: len(singles) + 2] == [*singles, *MIXES]
    assert len(names) <= len(singles) + 2 + 4
    assert choice.best.kl == min(each.kl for each in choice.proposals)
    assert [layer.score for layer in report.layers] == choice.scores
    assert choice.best.kl == pytest.approx(kl_by_hand(dense, model), rel=1e-4)


@pytest.mark.parametrize("name", SINGLE)
def test_a_single_score_is_judged_by_what_its_own_method_makes(name: str) -> None:
    proposals = {each.name: each for each in auto(tiny_model(), auto_budget=0).choice.proposals}  # type: ignore[union-attr]
    model, fitted = tiny_model(), hold_back(TOKENS, plan("auto"))[0]
    method, _, alpha = name.partition(" α ")
    dass.prune(model, fitted, method, alpha=float(alpha or 0.5))
    assert proposals[name].kl == pytest.approx(kl_by_hand(tiny_model(), model), rel=1e-4)
    assert set(proposals) == {*SINGLE, *MIXES}


def where_wanda_wins() -> PreTrainedModel:
    """Half of the MLPs' input channels hardly speak: Wanda removes their weights, DaSS half of each channel's."""
    model: Any = tiny_model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.post_attention_layernorm.weight[::2] = 1e-3
    return model


def where_dass_wins() -> PreTrainedModel:
    """Half of the intermediate neurons hardly speak: DaSS removes them, Wanda half of each neuron's weights."""
    model: Any = tiny_model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[::2] *= 1e-3
            layer.mlp.gate_proj.weight[::2] *= 1e-3
    return model


@pytest.mark.parametrize(("made", "method"), [(where_wanda_wins, "wanda"), (where_dass_wins, "dass")])
def test_a_model_for_which_one_score_is_right_gets_it(made: Callable[[], PreTrainedModel], method: str) -> None:
    choice = auto(made()).choice
    assert choice is not None
    assert {score.method for score in choice.scores} == {method}
    assert choice.single.name.startswith(method)
    other = min(each.kl for each in choice.proposals[:4] if not each.name.startswith(method))
    assert choice.best.kl < 0.5 * other


def test_layers_of_either_kind_each_get_their_score() -> None:
    model: Any = where_wanda_wins()
    with torch.no_grad():
        model.model.layers[1] = where_dass_wins().model.layers[1]
    choice = auto(model).choice
    assert choice is not None
    assert [score.method for score in choice.scores] == ["wanda", "dass", "wanda"]
    assert choice.best.kl < choice.single.kl
    assert "the best single score" in choice.told


def test_along_the_contraction_axis_there_is_nothing_to_choose() -> None:
    report = auto(tiny_model(), pattern="2:4", layout="contraction")
    assert report.choice is not None
    assert [each.name for each in report.choice.proposals] == ["wanda"]
    expected = dass.prune(tiny_model(), hold_back(TOKENS, plan("auto"))[0], "wanda", pattern="2:4").keep
    assert all(torch.equal(mask, expected[name]) for name, mask in report.keep.items())


def test_a_change_of_a_layer_stays_only_when_the_judge_likes_it() -> None:
    choice = auto(tiny_model(), auto_budget=20).choice
    assert choice is not None
    best = min(choice.proposals[:6], key=lambda each: each.kl)
    steps = choice.proposals[6:]
    assert 6 <= len(steps) <= 9  # three others for each layer, but for those that were judged before
    for step in steps:
        assert sum(one != other for one, other in zip(step.layers, best.layers, strict=True)) == 1
        best = step if step.kl < best.kl else best
    assert choice.best == best


def test_a_checkpoint_on_disk_gets_what_the_model_in_memory_gets(tmp_path: Path) -> None:
    base = save_tiny_checkpoint(tmp_path / "base")
    in_memory = auto(tiny_model(), pattern="2:4")
    on_disk = dass.prune_checkpoint(base, tmp_path / "pruned", TOKENS, "auto", pattern="2:4", auto_budget=4)
    assert on_disk.choice == in_memory.choice
    assert [layer.score for layer in on_disk.layers] == [layer.score for layer in in_memory.layers]


def prune(base: Path, root: Path, **options: Any) -> dass.CheckpointReport:
    return dass.prune_checkpoint(
        base, root / "pruned", TOKENS, "auto", work=root / "work", auto_budget=4, pattern="2:4", **options
    )


def made(root: Path) -> dict[str, str]:
    """Digests of what a run ends with: the checkpoint, every proposal and the choice."""
    records = (root / "work").rglob("auto/*.json")
    return {path.name: sha256_file(path) for path in [*(root / "pruned").rglob("*.safetensors"), *records]}


class _Stop(Exception):
    """The search dies here."""


def test_a_search_that_died_goes_on_behind_its_last_proposal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, run = save_tiny_checkpoint(tmp_path / "base"), Search._run
    undisturbed = prune(base, tmp_path / "undisturbed").choice
    assert undisturbed is not None
    judged: list[str] = []

    def once(self: Search, name: str, *how: Any) -> Proposal:
        if len(judged) % 2:  # dies in every second proposal, once
            judged.append("died")
            raise _Stop
        judged.append(name)
        return run(self, name, *how)

    monkeypatch.setattr(Search, "_run", once)
    for _ in undisturbed.proposals:
        with suppress(_Stop):
            prune(base, tmp_path / "died")
    assert [name for name in judged if name != "died"] == [each.name for each in undisturbed.proposals]
    assert made(tmp_path / "died") == made(tmp_path / "undisturbed")


def test_a_search_killed_at_any_moment_ends_in_the_bytes_of_an_undisturbed_one(tmp_path: Path) -> None:
    base = save_tiny_checkpoint(tmp_path / "base")
    began = time.perf_counter()
    assert os.waitpid(in_a_process(lambda: prune(base, tmp_path / "undisturbed")), 0)[1] == 0
    duration, moments = time.perf_counter() - began, random.Random(0)
    for number in range(3):
        root = tmp_path / str(number)
        process = in_a_process(lambda root=root: prune(base, root))  # type: ignore[misc]
        time.sleep(moments.uniform(0.1, 0.9) * duration)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        assert os.waitpid(in_a_process(lambda root=root: prune(base, root)), 0)[1] == 0  # type: ignore[misc]
        assert made(root) == made(tmp_path / "undisturbed")
        assert not list((root / "work").rglob("hidden/*"))  # what spared layers is gone


def test_what_lies_before_a_change_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no bit depends on it."""
    from dass.engine.prefixes import Prefixes
    from dass.engine.pruner import LayerwisePruner

    run, spared = LayerwisePruner.prune_layer, []
    layers: list[int] = []

    def count(self: LayerwisePruner, index: int, *companion: Any) -> Any:
        layers.append(index)
        return run(self, index, *companion)

    monkeypatch.setattr(LayerwisePruner, "prune_layer", count)
    for room in (True, False):
        monkeypatch.setattr(Prefixes, "_has_room", lambda *_, room=room: room)
        layers.clear()
        spared.append((auto(tiny_model(num_hidden_layers=6), auto_budget=8).choice, len(layers)))
    (with_room, few), (without, many) = spared
    assert with_room == without
    assert few < many


def test_the_record_of_a_choice_is_json_and_comes_back() -> None:
    singles = [Proposal("wanda", [0, 0], 0.5), Proposal("dass α 0.5", [1, 1], 0.75)]
    mix = Proposal("mix", [0, 1], 0.25, [[1.0, 2.0], [2.0, 1.0]])
    choice = Choice([Score("wanda"), Score("dass", 0.5)], [*singles, mix], "mix", 4, 64)
    named = json.loads(json.dumps(choice.named))
    assert Choice.of(named).scores == [Score("wanda"), Score("dass", 0.5)]
    assert "errors" not in named["proposals"][2]
    assert Choice.of(named).told == (
        "mix: wanda in 1 of 2 layers, dass α 0.5 in 1 of 2 layers; KL 0.25, the best single score (wanda) 0.5"
    )


def test_local_errors_by_hand() -> None:
    dense = (torch.tensor([[[3.0, 4.0], [30.0, 40.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]))
    pruned = (torch.tensor([[[3.0, 5.0], [30.0, 45.0]]]), torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]))
    assert output_error([(dense, pruned)]) == pytest.approx(1.0)  # √(1 + 4) / √(1 + 4)
    assert stream_error([(dense, pruned)]) == pytest.approx((1 / 5 + 5 / 50) / 2)


def test_windows_to_judge_by_are_spread_and_none_is_lost() -> None:
    fitted, held = hold_back(torch.arange(10)[:, None], plan("auto", auto_windows=3))
    assert held.flatten().tolist() == [1, 5, 8]
    assert sorted([*fitted.flatten().tolist(), *held.flatten().tolist()]) == list(range(10))
    assert hold_back(TOKENS, plan())[0] is TOKENS


def test_too_few_windows_are_refused_before_any_work(tmp_path: Path) -> None:
    base, told = save_tiny_checkpoint(tmp_path / "base"), "auto_windows 4: .* but there are 4. Take more windows"
    model = tiny_model()
    before = model.state_dict()["model.layers.0.mlp.up_proj.weight"].clone()
    with pytest.raises(InputError, match=told):
        dass.prune(model, tiny_tokens(4, 16), "auto")
    with pytest.raises(InputError, match=told):
        dass.prune_checkpoint(base, tmp_path / "pruned", tiny_tokens(4, 16), "auto", work=tmp_path / "work")
    assert torch.equal(model.state_dict()["model.layers.0.mlp.up_proj.weight"], before)
    assert not (tmp_path / "work").exists()


def test_groups_that_wanda_could_not_tile_are_refused() -> None:
    model = tiny_model(hidden_size=34, num_attention_heads=2, head_dim=17, num_key_value_heads=2)
    with pytest.raises(InputError, match="the hidden size of .* is 34, not a multiple of M=4"):
        auto(model, pattern="2:4")


def test_an_interrupted_search_leaves_the_model_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    from dass.engine.trial import Trial

    model, follow = tiny_model(), Trial.follow
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls: list[int] = []

    def interrupt(self: Trial, layer: Any) -> None:
        calls.append(1)
        if len(calls) == LAYERS + 2:
            raise KeyboardInterrupt
        follow(self, layer)

    monkeypatch.setattr(Trial, "follow", interrupt)
    with pytest.raises(KeyboardInterrupt):
        auto(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_choice_lies_in_the_work_folder(tmp_path: Path) -> None:
    base = save_tiny_checkpoint(tmp_path / "base")
    report = prune(base, tmp_path)
    files = sorted(path.name for path in (tmp_path / "work").rglob("auto/*.json"))
    assert report.choice is not None
    assert files == ["choice.json", *(f"proposal_{n:04d}.json" for n in range(len(report.choice.proposals)))]
    (path,) = (tmp_path / "work").rglob("auto/choice.json")
    assert Choice.of(read_json(path)).scores == report.choice.scores


@pytest.mark.parametrize("update", [pytest.param("reconstruct-mlp", marks=pytest.mark.slow), "reconstruct-block"])
def test_a_search_whose_proposals_are_trained_finishes_with_the_nearest_of_them(update: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"pattern": "2:4", "update": update, "auto_budget": 1, "auto_windows": 2, "epochs": 1}
    model = tiny_model()
    report = auto(model, **options)
    choice = report.choice
    assert choice is not None
    assert [each.name for each in choice.proposals][:6] == [*SINGLE, *MIXES]
    assert choice.best.kl == min(each.kl for each in choice.proposals)
    assert [layer.score for layer in report.layers] == choice.scores
    assert all(layer.fitted_error is not None for layer in report.layers)
    base = save_tiny_checkpoint(tmp_path / "base")
    on_disk = dass.prune_checkpoint(base, tmp_path / "pruned", TOKENS, "auto", work=tmp_path / "work", **options)
    assert on_disk.choice == choice
    assert sorted(path.name for path in (tmp_path / "work").rglob("auto/proposal_*.json"))[0] == "proposal_0000.json"
