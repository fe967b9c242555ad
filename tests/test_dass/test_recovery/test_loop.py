"""The training loop: what it minimises, when it stops, and that a run that was stopped ends in the same bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dass.errors import InputError, NumericalError
from dass.model.pretrained import load_model
from dass.recovery.recipe import check_enough
from dass.recovery.teacher import StoredTeacher, store_teacher
from tests.models import VOCABULARY
from tests.test_dass.test_recovery.pruned import WINDOWS, Pruned, recipe, same, trained


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    return Pruned(tmp_path_factory.mktemp("pruned"))


def losses(history: list[dict[str, Any]]) -> list[float]:
    return [entry["loss"] for entry in history if "loss" in entry]


def test_the_divergence_falls(pruned: Pruned) -> None:
    state = trained(pruned.recovery(recipe(steps=12), "falls"))
    looked = [entry["held_back"] for entry in state.history if "held_back" in entry]
    assert looked[-1] < 0.9 * looked[0]
    assert state.best == min(looked)
    assert [entry["step"] for entry in state.history] == list(range(13))
    rates = [entry["learning_rate"] for entry in state.history[1:]]
    assert max(rates) == rates[0] == 1e-2
    assert 0 < rates[-1] < 1e-3


class Killed(BaseException):
    """Ends a run where it stands, as a kill would."""


@pytest.mark.parametrize("train", ["mlp+norms", "lora"])
@pytest.mark.parametrize("at", [0, 1, 3, 5, 6])
def test_a_run_that_was_stopped_ends_in_the_same_bytes(train: Any, at: int, pruned: Pruned) -> None:
    asked = recipe(train=train, steps=6, evaluate_every=3)
    undisturbed = pruned.recovery(asked, f"undisturbed-{train}-{at}")
    expected = trained(undisturbed)

    def stop(entry: dict[str, Any]) -> None:
        if entry["step"] == at:
            raise Killed

    with pytest.raises(Killed):
        trained(pruned.recovery(asked, f"killed-{train}-{at}"), stop)
    again = pruned.recovery(asked, f"killed-{train}-{at}")
    assert again.state.step == at - at % 2
    assert trained(again) == expected
    assert same(again._student.stored_values(), undisturbed._student.stored_values())


def test_the_best_state_wins_and_nothing_better_is_the_pruned_model(pruned: Pruned) -> None:
    student = pruned.student()
    start = student.stored_values()
    recovery = pruned.recovery(recipe(learning_rate=30.0, max_grad_norm=1e9), "worse", student=student)
    state = trained(recovery)
    assert (state.best_step, state.looks) == (0, 2)
    assert same(student.stored_values(), start)
    assert recovery.held_back_loss() == pytest.approx(state.best)


def test_looks_without_a_better_one_end_it_early(pruned: Pruned) -> None:
    state = trained(pruned.recovery(recipe(steps=50, learning_rate=30.0, max_grad_norm=1e9, patience=2), "early"))
    assert (state.step, state.best_step) == (4, 0)


def test_with_nothing_held_back_the_last_step_counts(pruned: Pruned) -> None:
    state = trained(pruned.recovery(recipe(validation_share=0.0), "all of it"))
    assert (state.best_step, state.best) == (4, None)
    assert not [entry for entry in state.history if "held_back" in entry]


def test_nan_stops_with_the_step_and_keeps_the_last_state(pruned: Pruned) -> None:
    recovery = pruned.recovery(recipe(), "nan")

    def poison(entry: dict[str, Any]) -> None:
        if entry["step"] == 3:
            with torch.no_grad():
                next(iter(recovery._student.trained.values())).fill_(float("nan"))

    with pytest.raises(NumericalError, match=r"The loss of step 4 is nan .*The state behind step 2 is kept"):
        trained(recovery, poison)
    (kept,) = (pruned.folder / "nan").glob("state_*")
    assert all(value.isfinite().all() for name, value in load_file(kept).items() if name != "random")
    assert trained(pruned.recovery(recipe(), "nan")).step == 4


def test_how_a_step_is_cut_into_batches_makes_no_difference(pruned: Pruned) -> None:
    one, other, third = (
        losses(trained(pruned.recovery(recipe(**changes), f"cut {number}")).history)
        for number, changes in enumerate(
            ({"batch_tokens": 16}, {"batch_tokens": 64}, {"batch_tokens": 64, "activation_checkpointing": True})
        )
    )
    assert other == pytest.approx(one, rel=1e-4)
    assert third == pytest.approx(other, rel=1e-5)


def test_activations_are_computed_again_where_that_is_asked_for(pruned: Pruned) -> None:
    calls: dict[bool, int] = {}
    for again in (False, True):
        student, seen = pruned.student(), list[int]()
        student.model.get_submodule("model.layers.1.mlp").register_forward_pre_hook(
            lambda *_, seen=seen: seen.append(1)
        )
        asked = recipe(steps=1, validation_share=0.0, activation_checkpointing=again)
        trained(pruned.recovery(asked, f"again {again}", student=student))
        calls[again] = len(seen)
    assert calls[True] == calls[False] + 2  # a step of two batches


def test_a_stored_teacher_of_every_token_teaches_what_the_live_one_does(pruned: Pruned, tmp_path: Path) -> None:
    asked = recipe(temperature=2.0)
    live = losses(trained(pruned.recovery(asked, "live")).history)
    for k in (VOCABULARY, 8):
        file = tmp_path / f"{k}.safetensors"
        seen: list[int] = []
        store_teacher(load_model(pruned.folder / "base"), WINDOWS, file, k, 2.0, seen.append)
        assert sum(seen) == len(WINDOWS)
        kept = pruned.recovery(asked, f"stored {k}", teacher=StoredTeacher(file, 2.0))
        found = losses(trained(kept).history)
        assert load_file(file)["ids"].shape == (*WINDOWS.shape, k)
        if k == VOCABULARY:
            assert found == pytest.approx(live, rel=1e-3)
        else:
            assert found[0] < live[0]
            assert found[-1] < found[0]


def test_every_window_comes_once_before_any_comes_again(pruned: Pruned) -> None:
    recovery = pruned.recovery(recipe(), "order")
    assert len(recovery._fitted) == 10
    assert not set(recovery._fitted) & set(recovery._held_back)
    rows = [row for step in range(5) for row in recovery._rows(step)]
    assert sorted(rows[:10]) == sorted(rows[10:]) == sorted(recovery._fitted)
    assert rows[:10] != rows[10:]


@pytest.mark.parametrize(
    ("windows", "ranks", "told"),
    [
        (4, 1, r"recover has 3 windows of 16 tokens to train on \(1 more are held back\), and a step takes 4"),
        (12, 5, "A step of recover takes 4 windows, and 5 processes share them"),
    ],
)
def test_too_few_tokens_are_refused(windows: int, ranks: int, told: str) -> None:
    with pytest.raises(InputError, match=told):
        check_enough(windows, 16, recipe(), ranks)
