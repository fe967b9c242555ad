"""The zero-shot tasks that lm_eval knows by name: what each is called, and which data set its documents come from.

A task whose file is called like itself is found by that. For all others lm_eval reads some ten thousand files, which
takes many seconds: what it finds is kept for this user.
"""

import json
import logging
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import distribution
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from dass.errors import InputError
from dass.files import complete_file
from tasks.workspace.cache_folder import cache_folder

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
        means: of a group: the metrics that it has a mean of, and whether larger tasks weigh more in it.
    """

    kind: Kind
    file: str = ""
    data_set: str = ""
    members: tuple[str, ...] = ()
    writes: bool = False
    means: tuple[tuple[str, bool], ...] = ()


@dataclass(frozen=True)
class TaskGroup:
    """A group that is asked for by name and has a figure of its own.

    Attributes:
        tasks: names of its single tasks.
        means: metric -> whether larger tasks weigh more in the group's mean of it.
    """

    tasks: list[str]
    means: dict[str, bool]


def lm_eval_version() -> str:
    """The installed one."""
    return distribution("lm_eval").version


def single_tasks(names: list[str]) -> dict[str, Definition]:
    """The tasks that names stand for, groups taken apart, each once.

    Args:
        names: of tasks and groups.

    Raises:
        InputError: lm_eval knows no task of that name, or it is of a kind that is not supported.
    """
    if not names:
        return {}
    found: dict[str, Definition] = {}

    def take(name: str, within: tuple[str, ...]) -> None:
        definition = _definition(name, "evaluate.tasks")
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


def groups_with_means(names: list[str]) -> dict[str, TaskGroup]:
    """Those of the names that are groups for which lm_eval defines a mean, as mmlu has one and a mere tag has none."""
    definitions = {name: _definition(name, "evaluate.tasks") for name in names}
    return {
        name: TaskGroup(list(single_tasks([name])), dict(definition.means))
        for name, definition in definitions.items()
        if definition.means
    }


def check_task_names(names: list[str], setting: str) -> None:
    """Refuse a name that is no task of lm_eval's.

    Raises:
        InputError: with the nearest names.
    """
    for name in names:
        _definition(name, setting)


@cache
def _definition(name: str, setting: str) -> Definition:
    kept = cache_folder() / "lm_eval" / f"definitions-{lm_eval_version()}.json"
    known = _read(kept)
    if known is None and (definition := definition_by_file_name(name)) is not None:
        return definition
    known = known or _made(kept)
    if name in known:
        return known[name]
    near = get_close_matches(name, known, n=4, cutoff=0.5)
    told = f"Nearest: {', '.join(near)}." if near else "See: lm-eval ls tasks"
    raise InputError(f"{setting}: lm_eval {lm_eval_version()} knows no task {name!r}. {told}")


def definition_by_file_name(name: str) -> Definition | None:
    """The task that the first file of its name defines; None where there is no such file, or it says otherwise."""
    files = [line.partition(",")[0] for line in (distribution("lm_eval").read_text("RECORD") or "").splitlines()]
    for file in sorted(file for file in files if file.startswith("lm_eval/tasks/") and file.endswith(f"/{name}.yaml")):
        config = _yaml_loader().load_yaml(_folder().parents[1] / file, resolve_func=False)
        if config.get("task") == name and not {"class", "group"} & set(config):
            return _task(config, file.removeprefix("lm_eval/tasks/"))
    return None


@cache
def _yaml_loader() -> ModuleType:
    """lm_eval's own reader of definitions, by itself: the package around it takes seconds to import."""
    spec = spec_from_file_location("lm_eval_yaml_loader", _folder() / "_yaml_loader.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _folder() -> Path:
    """Where lm_eval keeps its definitions."""
    return Path(str(distribution("lm_eval").locate_file("lm_eval/tasks")))


def _task(config: dict[str, Any], file: str) -> Definition:
    writes = config.get("output_type", "generate_until") == "generate_until"
    kind: Kind = "class" if "class" in config else "task"
    return Definition(kind, file, str(config.get("dataset_path") or ""), writes=writes)


@cache
def _read(kept: Path) -> dict[str, Definition] | None:
    """What was kept; None: nothing yet, or it is damaged and made again."""
    try:
        values = json.loads(kept.read_text(encoding="utf-8"))
        return {name: _definition_of(each) for name, each in values.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _definition_of(kept: dict[str, Any]) -> Definition:
    means = tuple((str(metric), bool(weighted)) for metric, weighted in kept["means"])
    return Definition(**{**kept, "members": tuple(kept["members"]), "means": means})


def _made(kept: Path) -> dict[str, Definition]:
    logger.info("Reading the names of lm_eval's tasks, once for this version of it")
    found = _from_lm_eval()
    try:
        with complete_file(kept) as temporary:
            temporary.write_text(json.dumps({name: asdict(each) for name, each in found.items()}), encoding="utf-8")
        _read.cache_clear()
    except OSError:
        logger.debug("Not kept in %s: read again next time.", kept)
    return found


def _from_lm_eval() -> dict[str, Definition]:
    from lm_eval.tasks import TaskManager

    found, top = {}, _folder()
    for name, entry in TaskManager().task_index.items():
        config: dict[str, Any] = entry.cfg or {}
        match entry.kind.name:
            case "GROUP":
                members = config.get("task") or ()
                members = [members] if isinstance(members, str) else members
                found[name] = Definition("group", members=tuple(map(_member, members)), means=_means(config))
            case "TAG":
                found[name] = Definition("group", members=tuple(sorted(entry.tags)))
            case _:
                found[name] = _task(config, entry.yaml_path.relative_to(top).as_posix())
    return found


def _means(config: dict[str, Any]) -> tuple[tuple[str, bool], ...]:
    """What a group's definition says of its mean, read as lm_eval reads it."""
    asked = config.get("aggregate_metric_list") or ()
    asked = [asked] if isinstance(asked, dict) else asked
    return tuple((str(each["metric"]), bool(each.get("weight_by_size", True))) for each in asked)


def _member(member: Any) -> str:
    """A group's member by name; one that the group defines itself has none that lm_eval knows, and is refused by it."""
    return str(member if isinstance(member, str) else member.get("task") or member.get("group"))
