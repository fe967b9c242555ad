"""What MLflow shows at the top of a run and a version: the model card without its settings, and where it was made."""

import re
from typing import Any

LONGEST = 5000
"""Of a version's description: MLflow's column for it."""

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n+", re.DOTALL)
_SECTION = re.compile(r"^(?=## )", re.MULTILINE)
_LEFT_OUT = ("## Settings", "## Licence")
_REST = "\nThe rest is in `README.md` among the version's files.\n"


def description(card: str, provenance: dict[str, Any]) -> str:
    """The description, Markdown, at most `LONGEST` characters. Every name in it is set as code: it may be anybody's.

    Args:
        card: README.md of the version's folder.
        provenance: as `tasks.registry.registration.register` takes.
    """
    title, *sections = _SECTION.split(_FRONT_MATTER.sub("", card))
    told = title.partition("\n")[2].strip() + f"\n\n{_origin(provenance)}\n\n"
    for section in (each for each in sections if not each.startswith(_LEFT_OUT)):
        if len(told) + len(section) + len(_REST) > LONGEST:
            return told[: LONGEST - len(_REST)] + _REST
        told += section
    return told


def _origin(provenance: dict[str, Any]) -> str:
    made = []
    if run := provenance.get("flow_run"):
        shown = f"[{_word(run['name'])}](<{run['url']}>)" if "url" in run else f"{_code(run['name'])} (`dass ui`)"
        made.append(f"Prefect flow run {shown}, {_code(run['id'])}")
    made.append(f"commit {_code(provenance['git_commit'])}" if provenance["git_commit"] else "not in git")
    return (
        f"Made by {'; '.join(made)}. `report.html` among the run's artifacts shows all of it: figures with intervals, "
        "layers, neurons, history. Charts by layer: the metrics `layer.…`, whose step is the layer."
    )


def _code(text: str) -> str:
    """A text as code, whatever is in it."""
    return f"`{' '.join(str(text).split()).replace('`', chr(39)).replace('|', '¦')}`"


def _word(text: str) -> str:
    """A name as plain text of a link: what Markdown would read in it is left out."""
    return "".join(each for each in text if each.isalnum() or each in " -_.:")
