"""What is trained of which model, with the zero pattern exact at every moment and the proof behind it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dass.errors import InputError
from dass.masks.updates import Updates
from dass.model.pretrained import load_model
from dass.recovery.student import Student
from tests.models import EVERY_FAMILY, tiny_config
from tests.test_dass.test_recovery.pruned import Pruned, recipe, trained, zeros_hold


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_family_is_trained_with_its_zeros_held_and_proved(family: str, tmp_path: Path) -> None:
    pruned = Pruned(tmp_path, family)
    student = pruned.student()
    before = student.stored_values()
    recovery = pruned.recovery(recipe(steps=2, train="mlp+norms"), student=student)
    seen: list[bool] = []
    state = trained(recovery, lambda _: seen.append(zeros_hold(student)))
    assert seen == [True] * 3
    assert state.history[-1]["held_back"] < state.history[0]["held_back"]
    after = student.stored_values()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert set(pruned.masks) <= set(after)
    tuned = pruned.prove(student)
    assert tuned
    assert not [name for name in tuned if "norm" not in name and not name.endswith(".bias")]


@pytest.mark.parametrize("train", ["mlp", "norms", "mlp+norms", "all", "lora"])
@pytest.mark.parametrize("options", [{}, {"method": "sparsegpt"}], ids=["masks", "updates"])
def test_what_is_trained_changes_and_nothing_else_does(train: Any, options: dict[str, Any], tmp_path: Path) -> None:
    pruned = Pruned(tmp_path, **options)
    student = pruned.student(train)
    start = pruned.student("mlp").model.state_dict()
    recovery = pruned.recovery(recipe(train=train, steps=2, learning_rate=2e-3), student=student)
    seen: list[bool] = []
    trained(recovery, lambda _: seen.append(zeros_hold(student)))
    assert all(seen)
    changed = {name for name, value in student.model.state_dict().items() if not torch.equal(value, start[name])}
    kinds = {
        "mlp": {name for name in start if ".mlp." in name},
        "norms": {name for name in start if "norm" in name},
        "lora": {name for name in start if "_proj." in name},
    }
    kinds |= {"mlp+norms": kinds["mlp"] | kinds["norms"], "all": kinds["mlp"] | kinds["norms"] | kinds["lora"]}
    assert changed == kinds[train]
    assert not [name for name in changed if "embed" in name or "lm_head" in name]
    pruned.prove(student)


def test_values_are_rounded_to_the_type_that_they_are_stored_in(tmp_path: Path) -> None:
    pruned = Pruned(tmp_path, dtype=torch.bfloat16)
    student = pruned.student()
    trained(pruned.recovery(recipe(steps=2), student=student))
    for name, value in student.stored_values().items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(student.model.get_parameter(name).detach(), value.float())
    pruned.prove(student)


def test_the_student_starts_as_the_pruned_checkpoint(tmp_path: Path) -> None:
    pruned = Pruned(tmp_path, method="sparsegpt")
    expected = load_model(tmp_path / "pruned", torch.float32).state_dict()
    for train in ("mlp", "lora"):
        student = pruned.student(train)
        for name in student._changed:
            assert torch.equal(student._weight(name).detach(), expected[name]), name


def test_a_model_without_norms_of_its_own_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned = Pruned(tmp_path)
    monkeypatch.setattr(Student, "_inside", lambda _: [])
    with pytest.raises(InputError, match="recover.train is 'norms', and LlamaForCausalLM has no such parameter"):
        pruned.student("norms")


def test_masks_that_the_model_has_no_place_for_are_refused(tmp_path: Path) -> None:
    pruned = Pruned(tmp_path)
    masks = {**pruned.masks, "model.layers.9.mlp.up_proj.weight": torch.ones(2, 2, dtype=torch.bool)}
    model = load_model(tmp_path / "base", torch.float32)
    with pytest.raises(InputError, match=r"layers\.9.* is pruned, and LlamaForCausalLM has no place for it"):
        Student(model, pruned.base, masks, Updates([]), "mlp")


def test_the_families_here_tie_embeddings_and_do_not() -> None:
    """So that the test of every family says something of both."""
    tied = {family: bool(tiny_config(family).tie_word_embeddings) for family in EVERY_FAMILY}
    assert {True, False} <= set(tied.values()), tied
