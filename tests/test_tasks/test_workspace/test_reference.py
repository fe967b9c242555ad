"""What is said of the settings is what the model does."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from ruamel.yaml import YAML

from dass.errors import InputError
from tasks.workspace.recipes import RECIPES
from tasks.workspace.reference import groups, in_markdown, in_text, recipes_in_text, schema
from tasks.workspace.settings import Settings, validate_settings

ROOT = Path(__file__).parents[3]
SHIPPED: dict[str, Any] = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
CHECK = jsonschema.Draft202012Validator(schema())
# What must be set too for a value to be looked at.
NEEDS: dict[str, dict[str, Any]] = {
    "prune.owl_bound": {"allocation": "owl"},
    "prune.validation_share": {"update": "reconstruct"},
    "recover.sequence_length": {"windows": 4},
    "engine.nodes": {"rdzv_endpoint": "node0:29500"},
}


def limited() -> Iterator[tuple[str, str, float, float]]:
    """Each setting with a limit: key, a value's name, the nearest value inside, the nearest outside."""
    whole = schema()
    for section, node in whole["properties"].items():
        for key, each in whole["$defs"][node["$ref"].rpartition("/")[2]]["properties"].items():
            for kind in (each, *each.get("anyOf", [])):
                step = 1 if "integer" in str(each) else 1e-6
                for name, inside in (("minimum", 0), ("exclusiveMinimum", 1), ("maximum", 0), ("exclusiveMaximum", -1)):
                    if name in kind:
                        limit = kind[name]
                        outward = -step if "inimum" in name else step
                        outside = limit if "exclusive" in name else limit + outward
                        yield f"{section}.{key}", name, limit + inside * step, outside


def with_value(name: str, value: Any) -> dict[str, Any]:
    section, key = name.split(".")
    values = copy.deepcopy(SHIPPED)
    values[section] |= {**NEEDS.get(name, {}), key: value}
    return values


@pytest.mark.parametrize(("name", "limit", "inside", "outside"), list(limited()))
def test_a_limit_that_is_told_is_the_one_that_holds(name: str, limit: str, inside: float, outside: float) -> None:
    validate_settings(with_value(name, inside), "params.yaml")
    with pytest.raises(InputError, match=name.partition(".")[2]):
        validate_settings(with_value(name, outside), "params.yaml")
    for value, holds in ((inside, True), (outside, False)):
        assert CHECK.is_valid(with_value(name, value)) is holds, value


def test_limits_are_told() -> None:
    assert len(list(limited())) > 40


def test_every_setting_is_told_with_its_meaning() -> None:
    found = groups()
    names = [field.alias or name for name, field in Settings.model_fields.items()]
    assert [group.name for group in found] == [*names, "calibration text", "source", "task drop"]
    for group in found:
        assert group.meaning
        for each in group.settings:
            assert each.meaning.endswith("."), each.key
            assert each.takes
    assert [each.key for each in found[2].settings] == [f"prune.{key}" for key in SHIPPED["prune"]]


@pytest.mark.parametrize(
    ("key", "takes", "default"),
    [
        ("prune.sparsity", "number or null, above 0, below 1", None),
        ("prune.damping", "number or null, above 0, at most 10", "null"),
        ("prune.method", "dass | wanda | magnitude | sparsegpt | auto", None),
        ("calibration.seed", "whole number, 0 or more, below 2^63", None),
        ("calibration.texts", "{NAME: a calibration text}", "{}"),
        ("engine.batch_tokens", "auto or whole number, 1 or more", "auto"),
        ("engine.checkpoint_every", "whole number, above 0 or null", "null"),
        ("evaluate.tasks", "list of text", "[]"),
        ("sources.model", "a source", None),
        ("promote.max_task_drop", "{NAME: number or a task drop}", "{}"),
        ("promote.proof", "true | false", "true"),
        ("recover.learning_rate", "number, above 0", "0.0005"),
    ],
)
def test_a_setting_is_told_in_words(key: str, takes: str, default: str | None) -> None:
    (group,) = groups(key)
    (found,) = group.settings
    assert (found.key, found.takes, found.default) == (key, takes, default)


def test_a_section_is_found_by_its_name_and_a_key_by_what_holds_it() -> None:
    assert [group.name for group in groups("engine")] == ["engine"]
    assert [each.key for group in groups("sources.model.uri") for each in group.settings] == ["sources.model"]
    for unknown in ("engin", "prune.sparsety", "model"):
        with pytest.raises(
            InputError, match=f"no settings '{unknown}': expected one of sources, .*, recipes, or a key"
        ):
            groups(unknown)


@pytest.mark.parametrize("width", [60, 80])
def test_lines_are_as_long_as_the_terminal_is_wide(width: int) -> None:
    lines = [*in_text(groups(), width), *recipes_in_text(width)]
    assert max(map(len, lines)) <= width
    assert all(any(line.startswith(f"  {name}  ") for line in lines) for name in RECIPES)


def test_editors_accept_what_is_valid_and_mark_what_is_not() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert list(CHECK.iter_errors(SHIPPED)) == []
    for key, value in (
        ("prune.methd", "dass"),
        ("prune.pattern", "2-4"),
        ("engine.device", "tpu"),
        ("prune.epochs", "x"),
    ):
        assert list(CHECK.iter_errors(with_value(key, value))), key


def test_the_page_is_what_the_command_writes() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == in_markdown(), "run: dass settings --markdown > docs/settings.md"
