"""Named sets of settings: how weights are chosen, re-fitted and trained, on how much text. Which share goes stays the
user's.

Figures behind them: docs/results.md.
"""

from typing import TYPE_CHECKING, Any

from dass.errors import InputError
from tasks.workspace.flat import flat

if TYPE_CHECKING:
    from tasks.workspace.settings import Settings

_PAPER: dict[str, Any] = {
    "calibration.samples": 32,
    "calibration.source": "text",
    "prune.method": "dass",
    "prune.alpha": 0.5,
    "prune.update": "none",
    "prune.validation_share": 0.0,
    "prune.tune_norms": False,
    "prune.allocation": "uniform",
    "prune.propagation": "pruned",
    "prune.damping": None,
    "prune.refine": "none",
    "recover.steps": 0,
    "recover.warmup_steps": 5,
    "recover.step_tokens": 4096,
    "recover.batch_tokens": 2048,
    "recover.windows": None,
    "recover.validation_share": 0.1,
    "recover.evaluate_every": 10,
    "recover.checkpoint_every": 10,
}

_QUICK = {**_PAPER, "calibration.samples": 128, "prune.method": "sparsegpt", "prune.update": "reconstruct"}

RECIPES: dict[str, dict[str, Any]] = {
    "published": _PAPER,  # arXiv 2405.01943, and what `make run` does
    "quick": _QUICK,
    "best": {
        **_QUICK,  # then every window once, in small steps: at as many tokens they bring back more than large ones
        "recover.steps": 272,
        "recover.warmup_steps": 10,
        "recover.step_tokens": 1024,
        "recover.batch_tokens": 1024,
        "recover.windows": 576,
        "recover.validation_share": 0.05,
        "recover.evaluate_every": 68,
        "recover.checkpoint_every": 34,
    },
}
"""Name -> setting -> value. All name the same settings, so that one recipe leaves nothing of another behind."""


def recipe_named(name: str) -> dict[str, Any]:
    """The settings of a recipe.

    Raises:
        InputError: nothing is called that.
    """
    if name not in RECIPES:
        raise InputError(f"--recipe is {name!r}: expected one of {', '.join(RECIPES)}.")
    return RECIPES[name]


def recipe_of(settings: "Settings") -> str | None:
    """Which recipe settings are, as far as it says; None where they were refined away from all of them."""
    values = flat(settings.model_dump(include={"calibration", "prune", "recover"}))
    return next((name for name, wanted in RECIPES.items() if wanted.items() <= values.items()), None)


def in_words(name: str) -> str:
    """What distinguishes a recipe from the published method, in one line."""
    own = {key: value for key, value in RECIPES[name].items() if value != _PAPER[key]} or RECIPES[name]
    return ", ".join(f"{key}={_yaml(value)}" for key, value in own.items())


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
