"""The model card of a version: what its README.md says."""

from typing import Any

from tasks.settings import Settings


def card(manifest: dict[str, Any], evaluation: dict[str, Any], settings: Settings, version: dict[str, Any]) -> str:
    """The model card's text.

    Args:
        manifest: dass/manifest.json.
        evaluation: dass/evaluation.json.
        settings: what the run was made with.
        version: dass/version.json.
    """
    prune = manifest["settings"]["prune"]
    ratio = evaluation["ratio"]
    return (
        f"# {settings.register_.model}\n\n"
        f"{manifest['base']['uri']}, its MLPs pruned with {prune['method']} {prune['pattern']}. "
        f"Perplexity is {ratio:.3f} times the dense model's.\n"
    )
