"""MLflow's door to masks-only versions: `mlflow.pyfunc.load_model("models:/NAME@ALIAS")` imports this module.

MLflow hands over a folder and nothing of the registry. The ledger of the store that MLflow speaks to is asked whether
it registered this folder; where there is no such store, that is told. `dass.load` refuses then.
"""

import logging
from pathlib import Path
from typing import Any

from dass.errors import InfrastructureError
from dass.files import read_json, sha256_file
from tasks.registry.checked import check_folder, registration_of
from tasks.registry.ledger import Ledger
from tasks.registry.ledger_run import find_model
from tasks.registry.loading import checkpoint_of, workspace_here
from tasks.registry.signing import SIGNATURE, SignatureError
from tasks.registry.version_folder import VERSION

logger = logging.getLogger("dass")


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
            params: of generation, such as {"max_new_tokens": 20}. MLflow passes what `tasks.registry.served` names.
        """
        if hasattr(prompts, "iloc"):
            prompts = prompts.iloc[:, 0]
        texts = [prompts] if isinstance(prompts, str) else [str(prompt) for prompt in prompts]
        return [found[0]["generated_text"] for found in self._pipeline(texts, **(params or {}))]


def _load_pyfunc(path: str) -> Generator:
    """What MLflow calls with the version's folder."""
    folder = Path(path)
    _check(folder)
    with checkpoint_of(folder, ws=workspace_here()) as checkpoint:
        return Generator(checkpoint)


def _check(folder: Path) -> None:
    """Hold the folder to the ledger of the store that MLflow speaks to.

    Raises:
        SignatureError: its model has a ledger there, which registered no such folder, or the folder was changed since.
        BrokenLedger: that ledger is not whole.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    model = str(read_json(folder / VERSION)["model"])
    client = MlflowClient()
    try:
        if find_model(client, model) is None:
            logger.warning(f"{folder} is not checked: {client.tracking_uri} has no model {model!r}")
            return
        chain = Ledger.open(client, model).chain()
    except (MlflowException, InfrastructureError, OSError) as error:
        logger.warning(f"{folder} is not checked: no ledger of {model!r} is to be had ({type(error).__name__})")
        return
    signature = sha256_file(folder / SIGNATURE)
    for registered in chain.entries:
        if registered.event == "registered" and registered.details.get("signature") == signature:
            entry, key = registration_of(chain, model, registered.version)
            check_folder(folder, model, entry, key)
            return
    raise SignatureError(f"{folder} is no version that the ledger of {model!r} registered.")
