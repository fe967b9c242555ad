"""The training loop: steps, looks at the held-back windows, and states that a killed run goes on from.

The smallest loop of our own on torch's AdamW and transformers' schedule, not transformers' Trainer: its checkpoints are
pickles (optimizer.pt, rng_state.pth), which this product neither writes nor reads. A state here is one safetensors
file, complete or absent. Nothing random is drawn but from the recipe's seed and the step's number, so a run that goes
on from a state ends in the bytes of one that was never disturbed, on the same kind of device and as many ranks.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from dass.engine.ranks import ALONE, Ranks
from dass.errors import InputError, NumericalError
from dass.files import canonical_json, complete_file
from dass.recovery.attention import attend_in_float32
from dass.recovery.body import Body
from dass.recovery.divided import like, whole
from dass.recovery.loss import relative_error
from dass.recovery.recipe import Recipe, check_enough, held_back_windows, windows_a_step
from dass.recovery.student import Student
from dass.recovery.teacher import Teacher

_STATE, _BEST = "state_{:06d}.safetensors", "best_{:06d}.safetensors"
_KEY = "state"


@dataclass
class State:
    """How far training is.

    Attributes:
        step: steps done.
        best_step: the step behind which the held-back loss was lowest; 0 is the model as it was pruned.
        best: that loss; None: nothing is held back, and the last step counts.
        looks: looks at the held-back windows since then.
        history: {"step", "loss", "learning_rate", "gradient_norm", "held_back"} a step, some of them without a key;
            step 0 has "held_back" only.
    """

    step: int = 0
    best_step: int = 0
    best: float | None = None
    looks: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class Recovery:
    """One training run. Every rank makes the same one."""

    def __init__(
        self,
        student: Student,
        teacher: Teacher,
        windows_WL: Tensor,
        recipe: Recipe,
        folder: Path,
        *,
        ranks: Ranks = ALONE,
        autocast: torch.dtype | None = None,
    ) -> None:
        """Split the windows, and take up the last state in `folder`.

        Args:
            student: what is trained, on its device.
            teacher: knows every window.
            windows_WL: token ids, LongTensor (W, L).
            recipe: how.
            folder: of this run and no other; made if missing.
            ranks: the processes that share a step's windows; rank 0 writes.
            autocast: type of the products; None: float32.

        Raises:
            InputError: fewer tokens than one step's, or fewer windows a step than ranks.
        """
        self._student, self._teacher, self._recipe, self._folder, self._ranks = student, teacher, recipe, folder, ranks
        self._windows_WL, self._autocast = windows_WL, autocast
        self._device = student.model.device
        windows, length = windows_WL.shape
        held_back = held_back_windows(windows, recipe.validation_share)
        order = torch.randperm(windows, generator=torch.Generator().manual_seed(recipe.seed)).tolist()
        self._held_back, self._fitted = sorted(order[:held_back]), order[held_back:]
        self._per_step = windows_a_step(recipe.step_tokens, length)
        check_enough(windows, length, recipe, ranks.size)
        if autocast is not None and self._device.type == "cpu":
            attend_in_float32(student.model)
        self._body = Body(student.model, windows_WL[0].to(self._device))
        if recipe.activation_checkpointing:
            self._hold_no_activations()
        matrices = [parameter for parameter in student.trained.values() if parameter.dim() > 1]
        others = [parameter for parameter in student.trained.values() if parameter.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._optimiser = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=recipe.learning_rate, fused=True
        )
        schedule = get_cosine_schedule_with_warmup(self._optimiser, recipe.warmup_steps, recipe.steps + 1)
        self._share_at: Callable[[int], float] = schedule.lr_lambdas[0]
        folder.mkdir(parents=True, exist_ok=True)
        self.state = self._resumed()
        ranks.wait()  # nobody writes before everybody has looked

    def run(self, on_step: Callable[[dict[str, Any]], object]) -> State:
        """Train to the end, and leave the student as the winning state has it, rounded to the types it is stored in.

        Args:
            on_step: called with each entry of the history as it is made; not with those of an earlier run.

        Raises:
            NumericalError: the loss is NaN or infinite. The message names the step; the last state stays.
        """
        state = self.state
        if state.step == 0 and not state.history:
            self._look(state.history.append, {"step": 0})
            for entry in state.history:
                on_step(entry)
        while state.step < self._recipe.steps and not self._is_over():
            entry = self._step()
            state.history.append(entry)
            state.step += 1
            last = state.step == self._recipe.steps
            if last or state.step % self._recipe.evaluate_every == 0:
                self._look(lambda _: None, entry)
            if last or state.step % self._recipe.checkpoint_every == 0 or self._is_over():
                self._save()
            on_step(entry)
        if self._held_back and state.best_step != state.step:
            self._student.load(self._best_values())
        self._student.round_()
        return state

    @torch.no_grad()
    def held_back_loss(self) -> float | None:
        """Loss of the held-back windows, nats a token; None: there are none. The same on every rank."""
        if not self._held_back:
            return None
        total = torch.zeros((), dtype=torch.float64)
        own = self._held_back[self._ranks.rank :: self._ranks.size]
        for rows, share in self._shares(own, self._held_back):
            total += self._loss(rows, share, backwards=False)
        total = total.to(self._device)
        self._ranks.sum_(total)
        return total.item()

    def _is_over(self) -> bool:
        patience = self._recipe.patience
        return patience is not None and self.state.looks >= patience

    def _step(self) -> dict[str, Any]:
        """One optimiser step. Raises NumericalError: its loss or gradient is NaN or infinite."""
        recipe, step = self._recipe, self.state.step
        rows = self._rows(step)
        self._optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64)
        own = self._ranks.share([slice(each, each + 1) for each in range(len(rows))])
        for batch, share in self._shares(rows[own[0].start : own[-1].stop], rows):
            total += self._loss(batch, share, backwards=True)
        total = total.to(self._device)
        trained = list(self._student.trained.values())
        for parameter in trained:
            if parameter.grad is None:  # an expert without tokens: ranks must agree on what they add up
                parameter.grad = torch.zeros_like(parameter)
        self._ranks.sum_(total)
        if not self._student.is_divided:  # else they are summed as they are made
            self._ranks.sum_(*(parameter.grad for parameter in trained if parameter.grad is not None))
        self._student.hold_gradients()
        length = whole(torch.nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm))
        loss, norm = total.item(), float(length)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            kept = self._last_state()
            raise NumericalError(
                f"The loss of step {step + 1} is {loss} and its gradient {norm}: training stopped. "
                + (f"The state behind step {kept[0]} is kept. " if kept else "No step was kept yet. ")
                + "Lower recover.learning_rate."
            )
        rate = recipe.learning_rate * self._share_at(step + 1)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.step()
        self._student.hold_weights()
        return {"step": step + 1, "loss": loss, "learning_rate": rate, "gradient_norm": norm}

    def _loss(self, rows: list[int], share: float, *, backwards: bool) -> Tensor:
        """A batch's part of a mean over tokens, float64 on the CPU; with gradients added up where asked for.

        The head's slices go backwards one by one, so that one slice's logits are in memory.
        """
        input_ids_BL = self._windows_WL[rows].to(self._device)
        scale = share / input_ids_BL.numel()
        with self._products():
            target = self._teacher.target(rows, input_ids_BL)
            states_NH, layers = self._body.run(input_ids_BL, self._recipe.mse > 0)
        cut_NH = states_NH.detach().requires_grad_(backwards)
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for part in self._body.slices(cut_NH):
            with self._products():
                logits_nV = self._body.logits(cut_NH[part])
                loss = target.divergence(logits_nV, part.start) * scale
            if backwards:
                loss.backward()
            total += loss.detach()
        outputs, gradients = [states_NH], [cut_NH.grad]
        if layers:
            error = relative_error(layers, target.layers) * self._recipe.mse * share
            total += error.detach()
            outputs, gradients = [*outputs, error], [*gradients, None]
        if backwards:
            torch.autograd.backward(outputs, gradients)
        return total.cpu()

    def _products(self) -> AbstractContextManager[Any]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self._device.type, self._autocast)

    def _rows(self, step: int) -> list[int]:
        """Which windows a step takes: every window once before any comes again, in an order of each round's own."""
        count, rows = len(self._fitted), []
        for place in range(step * self._per_step, (step + 1) * self._per_step):
            turn, offset = divmod(place, count)
            generator = torch.Generator().manual_seed(self._recipe.seed + 1 + turn)
            rows.append(self._fitted[int(torch.randperm(count, generator=generator)[offset])])
        return rows

    def _shares(self, own: list[int], rows: list[int]) -> Iterator[tuple[list[int], float]]:
        """This rank's batches of some windows, and how much of the mean over all of them each is.

        Of a divided model each rank runs equally many: the last may be one that does not count.
        """
        size = windows_a_step(self._recipe.batch_tokens, self._windows_WL.shape[1])
        for start in range(0, len(own), size):
            batch = own[start : start + size]
            yield batch, len(batch) / len(rows)
        if self._student.is_divided:
            most = math.ceil(math.ceil(len(rows) / self._ranks.size) / size)
            yield from ((rows[:1], 0.0) for _ in range(most - math.ceil(len(own) / size)))

    def _look(self, note: Callable[[dict[str, Any]], object], entry: dict[str, Any]) -> None:
        """Measure the held-back windows, and keep the values where they are the best so far."""
        state, loss = self.state, self.held_back_loss()
        if loss is None:
            state.best_step = state.step
            return
        if not math.isfinite(loss):
            raise NumericalError(f"The held-back loss behind step {state.step} is {loss}: training stopped.")
        entry["held_back"] = loss
        note(entry)
        if state.best is not None and loss >= state.best:
            state.looks += 1
            return
        state.best, state.best_step, state.looks = loss, state.step, 0
        values = {name: _kept(parameter) for name, parameter in self._student.trained.items()}
        if self._ranks.is_first:
            with complete_file(self._folder / _BEST.format(state.step)) as temporary:
                save_file(values, temporary)
        self._ranks.wait()

    def _best_values(self) -> dict[str, Tensor]:
        return load_file(self._folder / _BEST.format(self.state.best_step), device=str(self._device))

    def _save(self) -> None:
        """Write the state; then those before it are of no more use."""
        moments = self._optimiser.state
        tensors = {"random": torch.get_rng_state()}
        for name, parameter in self._student.trained.items():
            tensors[f"value.{name}"] = _kept(parameter)
            tensors[f"first.{name}"] = _kept(moments[parameter]["exp_avg"])
            tensors[f"second.{name}"] = _kept(moments[parameter]["exp_avg_sq"])
        if self._ranks.is_first:
            path = self._folder / _STATE.format(self.state.step)
            with complete_file(path) as temporary:
                save_file(tensors, temporary, {_KEY: canonical_json(asdict(self.state))})
            for old in [*self._folder.glob("state_*.safetensors"), *self._folder.glob("best_*.safetensors")]:
                if old not in (path, self._folder / _BEST.format(self.state.best_step)):
                    old.unlink()
        self._ranks.wait()

    def _last_state(self) -> tuple[int, Path] | None:
        found = sorted(self._folder.glob("state_*.safetensors"))
        return (int(found[-1].stem.partition("_")[2]), found[-1]) if found else None

    def _resumed(self) -> State:
        """The last state, taken up; a new one where there is none."""
        last = self._last_state()
        if last is None:
            return State()
        with safe_open(last[1], framework="pt") as file:
            state = State(**json.loads(file.metadata()[_KEY]))
        tensors = load_file(last[1])
        self._student.load({name: tensors[f"value.{name}"] for name in self._student.trained})
        named = {id(parameter): name for name, parameter in self._student.trained.items()}
        described = self._optimiser.state_dict()
        parameters = [parameter for group in self._optimiser.param_groups for parameter in group["params"]]
        described["state"] = {
            number: {
                "step": torch.tensor(float(state.step), dtype=torch.float32),
                "exp_avg": like(tensors[f"first.{named[id(parameter)]}"], parameter),
                "exp_avg_sq": like(tensors[f"second.{named[id(parameter)]}"], parameter),
            }
            for number, parameter in enumerate(parameters)
        }
        self._optimiser.load_state_dict(described)
        torch.set_rng_state(tensors["random"])
        return state

    def _hold_no_activations(self) -> None:
        """The layers alone are told that they train: transformers checkpoints only then, and nothing is dropped out."""
        model = self._student.model
        if not model.supports_gradient_checkpointing:
            raise InputError(
                f"recover.activation_checkpointing is true, and {type(model).__name__} cannot. Set it to false."
            )
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True


def _kept(tensor: Tensor) -> Tensor:
    """As a file holds it. All ranks have to ask."""
    return whole(tensor.detach()).cpu()
