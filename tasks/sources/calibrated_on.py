"""What artifacts/calibration/calibration.json says of where its windows come from."""

from collections.abc import Callable, Mapping
from typing import Any

SELF = "self"
"""The uri of windows that the model wrote itself; their sha256 is the base checkpoint's digest."""


def sources_of(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> {"uri", "sha256", ...} of all that gave windows: "calibration" is what `calibration.source` says."""
    return {"calibration": record["source"], **record["texts"]}


def told(record: Mapping[str, Any], named: Callable[[str], str] = str) -> str:
    """Every source by its uri, and how many windows it gave where there are several.

    Args:
        record: calibration.json.
        named: how a uri is written.
    """
    found = [(_uri(source["uri"], named), source) for source in sources_of(record).values()]
    if len(found) == 1:
        return found[0][0]
    return ", ".join(f"{uri} ({source['windows']} windows)" for uri, source in found)


def _uri(uri: str | list[str], named: Callable[[str], str]) -> str:
    if uri == SELF:
        return "text of the model's own"
    return named(uri) if isinstance(uri, str) else f"{named(uri[0])} and {len(uri) - 1} more"
