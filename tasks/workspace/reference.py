"""What every setting takes and means, read from the model: for `dass settings`, editors and docs/settings.md."""

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from dass.errors import InputError
from tasks.workspace.recipes import RECIPES, in_words
from tasks.workspace.settings import Settings

RECIPE_GROUP = "recipes"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true | false", "null": "null"}
_LIMITS = {
    "exclusiveMinimum": "above {}",
    "minimum": "{} or more",
    "exclusiveMaximum": "below {}",
    "maximum": "at most {}",
}
_LARGE = 2**31


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        key: as `-S` names it, or, of a source or another value with keys of its own, its key there.
        takes: type and range, in words.
        default: as YAML; None: it has none, params.yaml must give it.
        meaning: in words.
    """

    key: str
    takes: str
    default: str | None
    meaning: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Group:
    """A section of params.yaml, or a value that sections hold and that has keys of its own.

    Attributes:
        name: the section's, or what such a value is called in `Setting.takes`.
        meaning: in a sentence.
        settings: in the order of params.yaml.
    """

    name: str
    meaning: str
    settings: list[Setting]

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "meaning": self.meaning, "settings": [each.as_json() for each in self.settings]}


def schema() -> dict[str, Any]:
    """JSON schema of params.yaml: an editor that knows it completes keys, and tells what they take and mean."""
    return {"$schema": _DIALECT, **Settings.model_json_schema(by_alias=True), "title": "params.yaml of dass"}


def groups(wanted: str | None = None) -> list[Group]:
    """Every section, then what sections hold; or only one of them, or the section of one setting with that alone.

    Raises:
        InputError: nothing is called that.
    """
    whole = schema()
    kinds = whole["$defs"]
    sections = {name: _referred(node, kinds) for name, node in whole["properties"].items()}
    found = [_group(name, kinds[kind], f"{name}.") for name, kind in sections.items()]
    found += [_group(_called(kind), node, "") for kind, node in kinds.items() if kind not in sections.values()]
    if wanted is None:
        return found
    chosen = [group for group in found if group.name == wanted]
    chosen += [
        Group(group.name, group.meaning, [each])
        for group in found
        for each in group.settings
        if "." in wanted and (each.key == wanted or wanted.startswith(f"{each.key}."))
    ]
    if not chosen:
        names = ", ".join([*(group.name for group in found), RECIPE_GROUP])
        raise InputError(f"There are no settings {wanted!r}: expected one of {names}, or a key such as prune.sparsity.")
    return chosen


def in_text(found: list[Group], width: int) -> Iterator[str]:
    """The groups for a terminal of so many columns, line by line."""
    for group in found:
        yield from textwrap.wrap(f"{group.name}: {group.meaning}", width)
        for each in group.settings:
            given = "must be given" if each.default is None else f"default {each.default}"
            yield ""
            yield from textwrap.wrap(f"{each.key}  {each.takes}; {given}", width, **_indented(2, 6))
            yield from textwrap.wrap(each.meaning, width, **_indented(6, 6))
        yield ""


def recipes_in_text(width: int) -> Iterator[str]:
    """The recipes for a terminal of so many columns, line by line."""
    yield from textwrap.wrap(f"{RECIPE_GROUP}: {_OF_RECIPES}", width)
    for name in RECIPES:
        yield ""
        yield from textwrap.wrap(f"{name}  {in_words(name)}", width, **_indented(2, 6))


def in_markdown() -> str:
    """docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Everything that `params.yaml` takes. On the command line: `dass settings`, `dass settings prune`,",
        "`dass settings prune.sparsity`. `dass run -S key=value` changes one. This file is what",
        "`dass settings --markdown > docs/settings.md` writes.",
        "",
        "Editors complete `params.yaml` and check it as you type: `dass settings --schema > params.schema.json`, with",
        "this as the first line of `params.yaml`:",
        "",
        "```yaml",
        "# yaml-language-server: $schema=params.schema.json",
        "```",
        "",
        "What must be given has no default: `dass init` writes a value for it.",
    ]
    for group in groups():
        lines += ["", f"## {group.name}", "", group.meaning, "", "| setting | takes | default | meaning |"]
        lines += ["|---|---|---|---|"]
        for each in group.settings:
            default = "" if each.default is None else f"`{each.default}`"
            cells = (f"`{each.key}`", _in_cell(each.takes), default, _in_cell(each.meaning))
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"## {RECIPE_GROUP}", "", _OF_RECIPES, "", "| recipe | sets |", "|---|---|"]
    lines += [f"| `{name}` | {_in_cell(in_words(name))} |" for name in RECIPES]
    return "\n".join(lines) + "\n"


_OF_RECIPES = (
    "Settings to begin with: dass run --recipe NAME, which -S refines. published sets all of these; the others set the "
    "same ones, and what is named here is what they change."
)


def _indented(first: int, others: int) -> dict[str, Any]:
    indents = {"initial_indent": " " * first, "subsequent_indent": " " * others}
    return {**indents, "break_long_words": False, "break_on_hyphens": False}


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|")


def _group(name: str, node: dict[str, Any], prefix: str) -> Group:
    required = node.get("required", [])
    settings = [
        Setting(
            f"{prefix}{key}",
            _takes(each),
            None if key in required else json.dumps(each["default"]).strip('"'),
            each["description"],
        )
        for key, each in node["properties"].items()
    ]
    return Group(name, " ".join(node["description"].split()), settings)


def _referred(node: dict[str, Any], kinds: dict[str, Any]) -> str:
    """What a section's node is defined as."""
    name = str(node["$ref"]).rpartition("/")[2]
    assert name in kinds
    return name


def _called(kind: str) -> str:
    """A model's name in words: CalibrationText is a calibration text."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind).lower()


def _takes(node: dict[str, Any]) -> str:
    """What a value may be, from its JSON schema."""
    ranges = [words.format(_shown(node[limit])) for limit, words in _LIMITS.items() if limit in node]
    return ", ".join([_kind(node), *ranges])


def _kind(node: dict[str, Any]) -> str:
    if "$ref" in node:
        return f"a {_called(str(node['$ref']).rpartition('/')[2])}"
    if "anyOf" in node:
        return " or ".join(_takes(each) for each in node["anyOf"])
    if "enum" in node or "const" in node:
        return " | ".join(str(each) for each in node.get("enum", [node.get("const")]))
    if "type" not in node:
        return "values"
    if node["type"] == "array":
        return f"list of {_takes(node['items'])}"
    if node["type"] == "object":
        return f"{{NAME: {_takes(node['additionalProperties'])}}}"
    return _KINDS[node["type"]]


def _shown(limit: float) -> str:
    power = int(limit).bit_length() - 1
    return f"2^{power}" if limit > _LARGE and limit == 2**power else f"{limit:g}"
