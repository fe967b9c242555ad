"""`-S section.key=value`: change params.yaml where it stands, comments and all, or not at all."""

import io
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from dass.errors import InputError
from dass.files import complete_file
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, read_params, validate_settings
from tasks.workspace.small_files import parse_yaml


class _WritesNull(RoundTripRepresenter):
    """A null stays the word it is in the file, with its comment where it was.

    A class of our own: representers belong to classes, and DVC writes dvc.lock with ruamel's.
    """


_WritesNull.add_representer(type(None), lambda writer, _: writer.represent_scalar("tag:yaml.org,2002:null", "null"))


def change_settings(
    ws: Workspace,
    changes: Iterable[str],
    accept: Callable[[Settings], None] = lambda _: None,
    recipe: Mapping[str, Any] | None = None,
) -> dict[str, tuple[Any, Any]]:
    """Write `section.key=value` pairs into params.yaml, after checking the settings they give as a whole.

    Args:
        ws: where.
        changes: the pairs.
        accept: asked of the settings before they are written; raises what it does not accept.
        recipe: key -> value, written before the pairs, which may refine it.

    Returns:
        What changed: key -> (value before, value now).

    Raises:
        InputError: a change cannot be read, names nothing, or gives settings that cannot be used. Nothing is written.
    """
    wanted = wanted_changes(changes, recipe)
    if not wanted:
        return {}
    read_params(ws.params)  # says in one line what is wrong with the file, if anything is
    text = ws.params.read_text(encoding="utf-8")
    changed, now, settings = rewrite(text, wanted, "-S")
    if now != text:
        accept(settings)
        with complete_file(ws.params) as temporary:
            temporary.write_text(now, encoding="utf-8")
            temporary.chmod(ws.params.stat().st_mode)
    return changed


def wanted_changes(changes: Iterable[str], recipe: Mapping[str, Any] | None = None) -> list[tuple[str, Any]]:
    """The settings of a recipe, refined by `section.key=value` pairs.

    Raises:
        InputError: a pair cannot be read.
    """
    refined = parse_changes(changes)
    given = {key for key, _ in refined}
    return [*((key, value) for key, value in (recipe or {}).items() if key not in given), *refined]


def rewrite(
    text: str, wanted: Iterable[tuple[str, Any]], origin: str
) -> tuple[dict[str, tuple[Any, Any]], str, Settings]:
    """Replace values in the text of params.yaml and keep its comments: what changed, the new text, and its settings.

    Raises:
        InputError: a key leads nowhere, or the new settings cannot be used.
    """
    yaml = YAML()
    yaml.Representer = _WritesNull
    yaml.preserve_quotes = True
    yaml.width = 4096
    document = yaml.load(text)
    changed: dict[str, tuple[Any, Any]] = {}
    for key, value in wanted:
        before = _put(document, key, value, origin)
        if before != value or type(before) is not type(value):
            changed[key] = (before, value)
    settings = validate_settings(_plain(document), origin)
    if not changed:
        return {}, text, settings
    stream = io.StringIO()
    yaml.dump(document, stream)
    return changed, stream.getvalue(), settings


def parse_changes(changes: Iterable[str], option: str = "-S") -> list[tuple[str, Any]]:
    """Read `section.key=value` pairs, given by an option of the command line; the value is YAML 1.2.

    Raises:
        InputError: one of them cannot be read.
    """
    return [_parse(change, option) for change in changes]


def _parse(change: str, option: str) -> tuple[str, Any]:
    key, equals, text = change.partition("=")
    if not equals or "." not in key:
        raise InputError(f"{option} {change}: expected section.key=value, for example {option} prune.sparsity=0.6")
    return key.strip(), parse_yaml(text, f"{option} {change[:200]}")


def _put(document: CommentedMap, key: str, value: Any, origin: str) -> Any:
    *parents, last = key.split(".")
    place: Any = document
    for parent in parents:
        if isinstance(place, dict) and place.get(parent) is None:
            place[parent] = {}  # params.yaml may leave a section out; what no section is called is refused as a whole
        place = place.get(parent) if isinstance(place, dict) else None
    if not isinstance(place, dict):  # a CommentedMap, or the plain one that a change before this one put there
        raise InputError(f"{origin} {key}: unknown key. See the sections of params.yaml.")
    before = _plain(place.get(last))
    # Quoted, so that a reader of YAML 1.1 does not take 2:4 for the number 124.
    ratio = isinstance(value, str) and re.fullmatch(r"\d+(:\d+)+", value)
    is_section = isinstance(place.get(last), CommentedMap) and not place[last].fa.flow_style()
    if ratio:
        place[last] = DoubleQuotedScalarString(value)
    else:
        place[last] = value if is_section else _on_one_line(value)
    return before


def _on_one_line(value: Any) -> Any:
    """A list or mapping in brackets: entries below one another would be parted from the comment beside the key."""
    if not isinstance(value, list | dict) or isinstance(value, CommentedMap | CommentedSeq):
        return value
    quoted = _quoted(value)
    made: Any = CommentedSeq(quoted) if isinstance(value, list) else CommentedMap(quoted)
    made.fa.set_flow_style()
    return made


def _quoted(value: Any) -> Any:
    """With quotes around texts that hold a colon or a question mark: DVC's reader takes none in brackets."""
    if isinstance(value, dict):
        return {_quoted(key): _quoted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_quoted(item) for item in value]
    return DoubleQuotedScalarString(value) if isinstance(value, str) and {":", "?"} & set(value) else value


def _plain(value: Any) -> Any:
    """The value without what keeps its comments and quotes."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value
