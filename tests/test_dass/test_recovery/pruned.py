"""A tiny pruned checkpoint and a recovery of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dass
from dass.engine.ranks import ALONE, Ranks
from dass.masks.mask_file import MaskFiles, apply_to_checkpoint
from dass.masks.proof import prove_weights
from dass.masks.updates import Updates, save_updates, updates_in
from dass.model.checkpoint import Checkpoint
from dass.model.pretrained import load_model
from dass.recovery.loop import Recovery, State
from dass.recovery.recipe import Recipe
from dass.recovery.student import Student
from dass.recovery.teacher import LiveTeacher
from tests.models import tiny_model, tiny_tokens

WINDOWS = tiny_tokens(12, 16, seed=3)


class Pruned:
    """A base with the masks and the new values of a pruned model."""

    def __init__(self, folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32, **options: Any) -> None:
        self.folder = folder
        tiny_model(family, dtype).save_pretrained(folder / "base")
        dass.prune_checkpoint(
            *(folder / "base", folder / "pruned", tiny_tokens()),
            work=folder / "work",
            **{"pattern": "2:4", **options},
        )
        self._open()

    @classmethod
    def of(cls, folder: Path) -> "Pruned":
        """What another process made in `folder`."""
        found = cls.__new__(cls)
        found.folder = folder
        found._open()
        return found

    def _open(self) -> None:
        folder = self.folder
        self.base = Checkpoint(folder / "base")
        self.masks = dict(MaskFiles(sorted((folder / "work").glob("*/layer_*.safetensors"))))
        self.updates = Updates(sorted((folder / "work").glob("*/updates_*.safetensors")))

    def student(self, train: Any = "mlp+norms") -> Student:
        model = load_model(self.folder / "base", torch.float32)
        return Student(model, self.base, self.masks, self.updates, train, lora_rank=4)

    def recovery(self, recipe: Recipe, work: str = "recovery", ranks: Ranks = ALONE, **options: Any) -> Recovery:
        teacher = LiveTeacher(
            load_model(self.folder / "base", torch.float32), WINDOWS[0], recipe.temperature, recipe.mse > 0
        )
        student = options.pop("student", None) or self.student(recipe.train)
        teacher = options.pop("teacher", teacher)
        return Recovery(student, teacher, WINDOWS, recipe, self.folder / work, ranks=ranks, **options)

    def prove(self, student: Student) -> list[str]:
        """Write what was trained as the stage does, make the checkpoint, and prove it. Names of the tuned tensors."""
        values, out = student.stored_values(), self.folder / "new"
        (out / "updates").mkdir(parents=True)
        save_updates(values, self.masks, out / "updates" / "all.safetensors")
        updates = self.updates.replaced_by(updates_in(out / "updates"))
        tuned = updates.tuned(self.masks)
        (out / "model").mkdir()
        apply_to_checkpoint(self.base, self.masks, out / "model", updates, tuned=tuned)
        prove_weights(self.base, Checkpoint(out / "model"), self.masks, updates, tuned)
        for name, value in values.items():
            assert torch.equal(Checkpoint(out / "model").load([name])[name], value), name
        return tuned


def recipe(**changes: Any) -> Recipe:
    """Four windows a step in two batches; two windows are held back."""
    tiny: dict[str, Any] = {
        "steps": 4,
        "step_tokens": 64,
        "batch_tokens": 32,
        "learning_rate": 1e-2,
        "warmup_steps": 1,
        "evaluate_every": 2,
        "checkpoint_every": 2,
        "validation_share": 0.2,
    }
    return Recipe(**{**tiny, **changes})


def trained(recovery: Recovery, on_step: Callable[[dict[str, Any]], object] = lambda _: None) -> State:
    return recovery.run(on_step)


def zeros_hold(student: Student) -> bool:
    """Whether every weight that a mask removes is +0.0, bit for bit."""
    return all(
        not student._weight(name).detach()[~keep].view(torch.int32).any() for name, keep in student._keep.items()
    )


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
