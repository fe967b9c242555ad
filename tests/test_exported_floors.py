"""Imports go down only: flows -> tasks -> dass."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {"dass": {"dass"}, "tasks": {"tasks", "dass"}, "flows": {"flows", "tasks", "dass"}}


def imported_floors(source: str) -> set[str]:
    """Which of our own top-level packages a module names in its import statements, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names & {*MAY_IMPORT, "tests", "benchmarks"}


@pytest.mark.parametrize("floor", MAY_IMPORT)
def test_a_floor_imports_only_itself_and_the_floors_below(floor: str) -> None:
    files = sorted((ROOT / floor).rglob("*.py"))
    assert files
    wrong = {
        str(file.relative_to(ROOT)): above
        for file in files
        if (above := imported_floors(file.read_text(encoding="utf-8")) - MAY_IMPORT[floor])
    }
    assert wrong == {}


def test_no_module_imports_relatively() -> None:
    for floor in MAY_IMPORT:
        for file in (ROOT / floor).rglob("*.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level], file


def test_an_import_inside_a_function_is_seen() -> None:
    assert imported_floors("def f():\n    from flows.cli import main\n    import torch, tasks.pins\n") == {
        "flows",
        "tasks",
    }
