"""Which libraries a version was registered with: all that `dass` needs, as they are installed here."""

import json
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

Library = dict[str, str]
"""{"name", "version"}, and "sha256" of the archive it was installed from where pip noted it."""

_ARCHIVE = "direct_url.json"


def installed_libraries(package: str = "dass") -> list[Library]:
    """A package's requirements and theirs, by name: what its lock file pins, as far as this platform needs it.

    Extras that nothing asks for are left out, and so is what is not installed.
    """
    found: dict[str, Library] = {}
    waiting, seen = [(package, frozenset[str]())], set[tuple[str, frozenset[str]]]()
    while waiting:
        asked = waiting.pop()
        if asked in seen:
            continue
        seen.add(asked)
        try:
            installed = distribution(asked[0])
        except PackageNotFoundError:
            continue
        if asked[0] != package:
            found[asked[0]] = _described(asked[0], installed)
        waiting += _required(installed, asked[1])
    return [found[name] for name in sorted(found)]


def _required(installed: Distribution, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    from packaging.requirements import Requirement  # here: whoever only checks a version needs neither
    from packaging.utils import canonicalize_name

    for line in installed.requires or ():
        wanted = Requirement(line)
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield canonicalize_name(wanted.name), frozenset(wanted.extras)


def _described(name: str, installed: Distribution) -> Library:
    archive = json.loads(installed.read_text(_ARCHIVE) or "{}").get("archive_info", {})
    sha256 = archive.get("hashes", {}).get("sha256")
    return {"name": name, "version": installed.version, **({"sha256": sha256} if sha256 else {})}
