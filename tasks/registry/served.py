"""What a version answers when MLflow serves it: texts in, texts out, and what a request may ask of the generation.

MLflow drops every parameter of a request that the signature does not name, and the model then samples as its own
configuration says: 256 tokens.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

_TEXT = '[{"type": "string", "required": true}]'
_PARAMS = (
    '[{"name": "max_new_tokens", "default": 64, "shape": null, "type": "long"}, '
    '{"name": "do_sample", "default": false, "shape": null, "type": "boolean"}, '
    '{"name": "temperature", "default": 1.0, "shape": null, "type": "double"}]'
)

SIGNATURE: dict[str, str] = {"inputs": _TEXT, "outputs": _TEXT, "params": _PARAMS}
"""As an MLmodel holds it."""


def served_signature() -> "ModelSignature":
    """The signature that every version is saved with."""
    from mlflow.models import ModelSignature

    return ModelSignature.from_dict(SIGNATURE)
