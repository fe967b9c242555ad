"""Named sets of settings: what each sets, and which one settings are."""

from pathlib import Path
from typing import Any

import pytest

from dass.errors import InputError
from flows.initialise import template
from flows.overrides import change_settings
from tasks.workspace.folder import Workspace
from tasks.workspace.recipes import RECIPES, in_words, recipe_named, recipe_of
from tasks.workspace.settings import load_settings

SHIPPED = Path(__file__).parents[3] / "params.yaml"


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    (tmp_path / "params.yaml").write_text(template("params.yaml"), encoding="utf-8")
    return Workspace(tmp_path)


def test_published_is_what_make_run_does(ws: Workspace) -> None:
    before = ws.params.read_bytes()
    assert before == SHIPPED.read_bytes()
    assert change_settings(ws, [], recipe=recipe_named("published")) == {}
    assert ws.params.read_bytes() == before
    assert recipe_of(load_settings(ws.params)) == "published"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_leaves_nothing_of_another_behind_and_can_be_told_from_the_settings(ws: Workspace, name: str) -> None:
    assert {frozenset(values) for values in RECIPES.values()} == {frozenset(RECIPES["published"])}
    for other in RECIPES:
        change_settings(ws, [], recipe=recipe_named(other))
        change_settings(ws, [], recipe=recipe_named(name))
        assert recipe_of(load_settings(ws.params)) == name


@pytest.mark.parametrize(
    ("changes", "left", "method"),
    [
        (["prune.pattern=2:4", "prune.sparsity=null"], "quick", "sparsegpt"),
        (["prune.method=wanda"], None, "wanda"),
    ],
)
def test_further_changes_refine_a_recipe(ws: Workspace, changes: list[str], left: str | None, method: str) -> None:
    changed: dict[str, Any] = change_settings(ws, changes, recipe=recipe_named("quick"))
    assert changed["calibration.samples"] == (32, 128)
    assert changed["prune.method"] == ("dass", method)
    settings = load_settings(ws.params)
    assert settings.prune.method == method
    assert recipe_of(settings) == left


def test_a_recipe_is_told_in_one_line_by_what_is_its_own() -> None:
    assert in_words("quick") == "calibration.samples=128, prune.method=sparsegpt, prune.update=reconstruct"
    assert in_words("published").startswith("calibration.samples=32, calibration.source=text, prune.method=dass")


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match="--recipe is 'fast': expected one of published, quick, best"):
        recipe_named("fast")
