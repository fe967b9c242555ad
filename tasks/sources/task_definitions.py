"""The zero-shot tasks that lm_eval knows by name: what each is called, and which data set its documents come from.

lm_eval reads some ten thousand files to find that out, which takes seconds: it is kept for this user.
"""

import json
import logging
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Literal

from dass.errors import InputError
from dass.files import complete_file
from tasks.sources.downloads import cache_folder

Kind = Literal["task", "class", "group"]

logger = logging.getLogger("dass")


@dataclass(frozen=True)
class Definition:
    """What a name stands for.

    Attributes:
        kind: a task, a task that is a Python class of lm_eval's, or a group of others.
        file: the task's definition, below lm_eval's folder of tasks; "" for a group.
        data_set: on the hub; "" where the definition names none.
        members: names in a group.
        writes: whether the model writes its answer, rather than finding some likelier than others.
    """

    kind: Kind
    file: str = ""
    data_set: str = ""
    members: tuple[str, ...] = ()
    writes: bool = False


def lm_eval_version() -> str:
    """The installed one."""
    return version_of("lm_eval")


def single_tasks(names: list[str]) -> dict[str, Definition]:
    """The tasks that names stand for, groups taken apart, each once.

    Args:
        names: of tasks and groups.

    Raises:
        InputError: lm_eval knows no task of that name, or it is of a kind that is not supported.
    """
    if not names:
        return {}
    known = _index()
    found: dict[str, Definition] = {}

    def take(name: str, within: tuple[str, ...]) -> None:
        definition = known.get(name)
        if definition is None:
            raise unknown_task(name, "evaluate.tasks", known)
        if definition.kind == "class":
            raise InputError(
                f"evaluate.tasks: {name} is a Python class of lm_eval's, not a definition that documents can be put "
                "into. Choose another task."
            )
        if definition.kind == "group":
            for member in definition.members:
                if member not in within:
                    take(member, (*within, member))
        else:
            found[name] = definition

    for name in names:
        take(name, (name,))
    return found


def check_task_names(names: list[str], setting: str) -> None:
    """Refuse a name that is no task of lm_eval's.

    Raises:
        InputError: with the nearest names.
    """
    known = _index() if names else {}
    for name in names:
        if name not in known:
            raise unknown_task(name, setting, known)


def unknown_task(name: str, setting: str, known: dict[str, Definition]) -> InputError:
    near = get_close_matches(name, known, n=4, cutoff=0.5)
    told = f"Nearest: {', '.join(near)}." if near else "See: lm-eval ls tasks"
    return InputError(f"{setting}: lm_eval {lm_eval_version()} knows no task {name!r}. {told}")


_KEPT: dict[str, dict[str, Definition]] = {}  # by version, for this process


def _index() -> dict[str, Definition]:
    version = lm_eval_version()
    if version not in _KEPT:
        kept = cache_folder() / "lm_eval" / f"tasks-{version}.json"
        _KEPT[version] = _read(kept) or _made(kept)
    return _KEPT[version]


def _read(kept: Path) -> dict[str, Definition] | None:
    try:
        values = json.loads(kept.read_text(encoding="utf-8"))
        return {name: Definition(**{**each, "members": tuple(each["members"])}) for name, each in values.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # none yet, or damaged: made again


def _made(kept: Path) -> dict[str, Definition]:
    logger.info("Reading the names of lm_eval's tasks, once for this version of it")
    found = _from_lm_eval()
    try:
        with complete_file(kept) as temporary:
            temporary.write_text(json.dumps({name: asdict(each) for name, each in found.items()}), encoding="utf-8")
    except OSError:
        logger.debug("Not kept in %s: read again next time.", kept)
    return found


def _from_lm_eval() -> dict[str, Definition]:
    from lm_eval import tasks as lm_eval_tasks

    top = Path(str(lm_eval_tasks.__file__)).parent
    found = {}
    for name, entry in lm_eval_tasks.TaskManager().task_index.items():
        config: dict[str, Any] = entry.cfg or {}
        file = entry.yaml_path.relative_to(top).as_posix() if entry.yaml_path else ""
        match entry.kind.name:
            case "GROUP":
                members = tuple(map(_member, config.get("task") or ()))
                found[name] = Definition("group", members=members)
            case "TAG":
                found[name] = Definition("group", members=tuple(sorted(entry.tags)))
            case kind:
                data_set = str(config.get("dataset_path") or "")
                writes = config.get("output_type", "generate_until") == "generate_until"
                found[name] = Definition("class" if kind == "PY_TASK" else "task", file, data_set, writes=writes)
    return found


def _member(member: Any) -> str:
    """A group's member by name; one that the group defines itself has none that lm_eval knows, and is refused by it."""
    return str(member if isinstance(member, str) else member.get("task") or member.get("group"))
