"""What is asked of a recovery."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from dass.errors import InputError

Train = Literal["mlp", "mlp+norms", "norms", "all", "lora"]
TeacherKind = Literal["live", "stored"]


@dataclass(frozen=True)
class Recipe:
    """How a pruned model is trained. Values are checked by whoever reads them.

    Attributes:
        steps: optimiser steps at most.
        train: which parameters: the masked ones with their biases ("mlp"), the norms, both, everything in the decoder
            layers and the last norm ("all"), or low-rank changes of the decoder layers' matrices ("lora"). Embeddings
            and head are never trained: the dense model's figures are compared through them.
        lora_rank: rank of those changes.
        learning_rate: AdamW's highest, reached behind `warmup_steps`; from there a cosine leads to nearly 0.
        warmup_steps: steps in which it rises.
        weight_decay: AdamW's, of matrices only.
        max_grad_norm: the gradient is scaled down to this length.
        step_tokens: tokens of an optimiser step; whole windows, at least one.
        batch_tokens: tokens computed at once; the gradients of a step's batches are added up.
        temperature: both models' logits are divided by it.
        mse: weight of the decoder layers' relative squared error beside the divergence; 0 leaves it out.
        teacher: "live" runs beside the student; "stored" runs once, and its `top_k` largest logits are kept.
        top_k: how many a token.
        validation_share: share of the windows that is held back. They decide when to stop, and which state wins.
        evaluate_every: steps between two looks at them.
        patience: looks without a better one after which training ends; None never ends it early.
        checkpoint_every: steps between two states that a killed run goes on from.
        activation_checkpointing: compute each layer's activations again in the backward pass, in place of holding them.
        seed: of the order of windows, of those held back, and of LoRA's start.
    """

    steps: int
    train: Train = "mlp+norms"
    lora_rank: int = 16
    learning_rate: float = 5e-4
    warmup_steps: int = 5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    step_tokens: int = 4096
    batch_tokens: int = 2048
    temperature: float = 1.0
    mse: float = 0.0
    teacher: TeacherKind = "live"
    top_k: int = 64
    validation_share: float = 0.1
    evaluate_every: int = 10
    patience: int | None = None
    checkpoint_every: int = 10
    activation_checkpointing: bool = False
    seed: int = 0

    @property
    def named(self) -> dict[str, Any]:
        """As records name it, in JSON."""
        return asdict(self)


def held_back_windows(windows: int, share: float) -> int:
    """How many of so many windows are held back: a share above 0 holds back one at least."""
    return 0 if share == 0 else max(1, round(share * windows))


def windows_a_step(step_tokens: int, length: int) -> int:
    """How many windows of so many tokens make a step."""
    return max(1, step_tokens // length)


def check_enough(windows: int, length: int, recipe: Recipe, ranks: int) -> None:
    """Refuse fewer tokens than a step takes, and fewer windows a step than processes.

    Raises:
        InputError: it is so.
    """
    held_back = held_back_windows(windows, recipe.validation_share)
    per_step = windows_a_step(recipe.step_tokens, length)
    if windows - held_back < per_step:
        raise InputError(
            f"recover has {windows - held_back} windows of {length} tokens to train on ({held_back} more are held "
            f"back), and a step takes {per_step}. Lower recover.step_tokens, or ask for more recover.windows."
        )
    if per_step < ranks:
        raise InputError(
            f"A step of recover takes {per_step} windows, and {ranks} processes share them: expected one each. Raise "
            "recover.step_tokens, or lower engine.processes."
        )
