"""Section `recover`: what the training loop is asked for."""

from pydantic import Field, model_validator

from dass.recovery.recipe import Recipe, TeacherKind, Train
from tasks.workspace.settings.section import Section


class Recover(Section):
    """How the pruned model is trained against its dense base, the masks held."""

    steps: int = Field(default=0, ge=0, description="Optimiser steps at most; 0 trains nothing.")
    train: Train = Field(
        default="mlp+norms",
        description="Which parameters: the masked ones with their biases, the norms, both, all of the decoder layers, "
        "or low-rank changes of their matrices (lora). Embeddings and head stay the base's.",
    )
    lora_rank: int = Field(default=16, gt=0, description="Rank of lora's changes.")
    learning_rate: float = Field(
        default=5e-4,
        gt=0.0,
        allow_inf_nan=False,
        description="AdamW's highest, reached behind warmup_steps; from there a cosine leads to nearly 0.",
    )
    warmup_steps: int = Field(default=5, ge=0, description="Steps in which the learning rate rises.")
    weight_decay: float = Field(default=0.0, ge=0.0, allow_inf_nan=False, description="AdamW's, of matrices only.")
    max_grad_norm: float = Field(
        default=1.0, gt=0.0, allow_inf_nan=False, description="The gradient is scaled down to this length."
    )
    step_tokens: int = Field(
        default=4096, gt=0, description="Tokens of an optimiser step; whole windows, at least one."
    )
    batch_tokens: int = Field(
        default=2048, gt=0, description="Tokens computed at once; the gradients of a step's batches are added up."
    )
    temperature: float = Field(
        default=1.0, gt=0.0, allow_inf_nan=False, description="Both models' logits are divided by it."
    )
    mse: float = Field(
        default=0.0,
        ge=0.0,
        allow_inf_nan=False,
        description="Weight of the decoder layers' relative squared error beside the divergence.",
    )
    teacher: TeacherKind = Field(
        default="live",
        description="live: the base in memory beside the student; stored: it runs once, its top_k logits are kept.",
    )
    top_k: int = Field(
        default=64, gt=0, description="Logits a token of a stored teacher; all other tokens count as one."
    )
    windows: int | None = Field(
        default=None,
        gt=0,
        description="Windows drawn for this from sources.calibration; null takes the calibration windows.",
    )
    sequence_length: int | None = Field(
        default=None, gt=1, description="Tokens of a drawn window; null takes the calibration's."
    )
    validation_share: float = Field(
        default=0.1,
        ge=0.0,
        lt=1.0,
        description="Share of the windows held back: they say when to stop, and which state is the best.",
    )
    evaluate_every: int = Field(default=10, gt=0, description="Steps between looks at the held-back windows.")
    patience: int | None = Field(
        default=None, gt=0, description="Looks without a better one after which training ends; null: never."
    )
    checkpoint_every: int = Field(default=10, gt=0, description="Steps between states that a killed run goes on from.")
    activation_checkpointing: bool = Field(
        default=False,
        description="Compute a layer's activations again in the backward pass: less memory for a third more time.",
    )
    sharded: bool = Field(
        default=False,
        description="Each of engine.processes holds its part of both models' layers, of gradients and moments (FSDP2), "
        "in place of all of them: slower, for models that do not fit.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**62, description="Of the order of windows, of those held back, and of lora's start."
    )

    @model_validator(mode="after")
    def _go_together(self) -> "Recover":
        if self.mse and self.teacher == "stored":
            raise ValueError(
                'mse is above 0 and teacher "stored": only its logits are stored. Use teacher: live, or mse: 0'
            )
        if self.sharded and (self.train == "lora" or self.teacher == "stored"):
            raise ValueError(
                f'sharded is true, train "{self.train}" and teacher "{self.teacher}": expected teacher: live, and '
                "another train than lora"
            )
        if self.sequence_length is not None and self.windows is None:
            raise ValueError(
                "sequence_length is set and windows null: the calibration windows have theirs. Set windows too"
            )
        return self

    @property
    def recipe(self) -> Recipe:
        """What the training loop is asked for."""
        return Recipe(**self.model_dump(exclude={"windows", "sequence_length", "sharded"}))
