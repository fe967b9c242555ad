"""What training behind pruning left in artifacts/recovered, and whether it belongs to a result of pruning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dass.errors import InputError

RECOVERY, FORMAT = "recovery.json", "dass-recovery-1"
NOT_TRAINED: dict[str, Any] = {"format": FORMAT, "trained": False}
"""The record where recovery is off."""


def check_recovery_fits(recovery: Mapping[str, Any], manifest: Mapping[str, Any], where: Path) -> None:
    """Refuse a recovery of another result of pruning.

    Args:
        recovery: recovery.json.
        manifest: manifest.json.
        where: what to name in the message.

    Raises:
        InputError: it was trained on other masks, other values or another base.
    """
    if not recovery["trained"]:
        return
    made_from = {
        "base": manifest["base"]["digest"],
        "teacher": manifest["base"]["digest"],
        "masks": manifest["masks"]["digest"],
        "pruned_updates": (manifest["updates"] or {}).get("digest"),
    }
    for name, digest in made_from.items():
        if recovery[name] != digest:
            raise InputError(
                f"{where} was trained with {name} {str(recovery[name])[:16]}, and the manifest says "
                f"{str(digest)[:16]}: it belongs to another result. Run: dass run"
            )
