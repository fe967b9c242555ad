"""MLflow's door to masks-only versions: `mlflow.pyfunc.load_model("models:/NAME@ALIAS")` imports this module.

MLflow hands over a folder and nothing of the registry, so the signature is not checked here. `dass.load` does that.
"""

from pathlib import Path
from typing import Any

from tasks.registry.loading import checkpoint_of, workspace_here


class Generator:
    """A loaded version that continues prompts."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import TextGenerationPipeline

        from dass.model.pretrained import load_model, load_tokenizer

        # The class itself: `transformers.pipeline` looks for more to load.
        self._pipeline = TextGenerationPipeline(
            model=load_model(checkpoint), tokenizer=load_tokenizer(checkpoint), task="text-generation"
        )

    def predict(self, prompts: Any, params: dict[str, Any] | None = None) -> list[str]:
        """Each prompt with its continuation.

        Args:
            prompts: a text, a list of them, or a data frame with them in its first column.
            params: of generation, such as {"max_new_tokens": 20}.
        """
        if hasattr(prompts, "iloc"):
            prompts = prompts.iloc[:, 0]
        texts = [prompts] if isinstance(prompts, str) else [str(prompt) for prompt in prompts]
        return [found[0]["generated_text"] for found in self._pipeline(texts, **(params or {}))]


def _load_pyfunc(path: str) -> Generator:
    """What MLflow calls with the version's folder."""
    with checkpoint_of(Path(path), ws=workspace_here()) as checkpoint:
        return Generator(checkpoint)
