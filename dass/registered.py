"""A registered version as a model. It lies in MLflow, which this package knows nothing of: the whole product does."""

from importlib import import_module
from pathlib import Path

from transformers import PreTrainedModel


def load(where: str | Path, base: Path | None = None) -> PreTrainedModel:
    """A version as a transformers causal LM, in the dtype it is stored in.

    Args:
        where: a version folder, "models:/NAME@ALIAS" or "models:/NAME/3". The registry is at MLFLOW_TRACKING_URI, else
            the mlflow.db of the workspace in the current folder.
        base: for masks-only versions, a folder with the base; None finds or fetches it.

    Raises:
        InputError: there is no such version, it is none, its base is not to be had, or transformers would make up,
            drop or resize a weight. `tasks.registry.loading.load` names what else is refused.
        ImportError: only this package is installed, without tasks/ and MLflow.

    Example:
        >>> model = dass.load("models:/smollm2-135m-dass@champion")
    """
    try:
        loading = import_module("tasks.registry.loading")
    except ImportError as error:
        raise ImportError(f"dass.load needs the whole product, with tasks/ and MLflow ({error}).") from None
    model: PreTrainedModel = loading.load(where, base)
    return model
