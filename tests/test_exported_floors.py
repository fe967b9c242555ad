"""Imports go down only: flows -> tasks -> dass, and inside each floor from one package to those below it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {"dass": {"dass"}, "tasks": {"tasks", "dass"}, "flows": {"flows", "tasks", "dass"}}

# From the ground up; what stands in one set may not import each other. A floor's own modules are named like packages.
STOREYS: dict[str, list[set[str]]] = {
    "dass": [
        {"errors"},
        {"sync_behind"},
        {"files", "digests"},
        {"outputs", "arguments", "progress", "registered"},
        {"method", "windows", "measures"},
        {"model", "calibration"},
        {"masks"},
        {"engine"},
        {"recovery", "reports"},
        {"api", "remask"},
    ],
    "tasks": [
        {"workspace"},
        {"notify"},
        {"sources"},
        {"versioning"},
        {"calibration", "evaluation", "forecast", "pruning"},
        {"plot_data"},
        {"plots"},
        {"study"},
        {"recovery"},
        {"registry"},
        {"promotion"},
        {"release"},
        {"report"},
        {"sweep"},
        {"disk"},
    ],
}
# What `dass` itself offers is looked up when it is asked for; the names are there for type checkers.
FACES = {"dass/__init__.py"}


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
    assert imported_floors(
        "def f():\n    from flows.cli.main import main\n    import torch, tasks.versioning.pins\n"
    ) == {
        "flows",
        "tasks",
    }


def storeys_imported(source: str, floor: str) -> set[str]:
    """Which packages (or modules beside them) of a floor a module names in its import statements, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} if node.module != floor else {f"{floor}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith(f"{floor}.")}


def wrong_imports(floor: str, package: str, source: str) -> set[str]:
    """What a module of `package` imports and may not: anything that is neither its own package nor below it."""
    allowed = {package}
    for storey in STOREYS[floor]:
        if package in storey:
            return storeys_imported(source, floor) - allowed
        allowed |= storey
    raise AssertionError(f"{floor}/{package} stands in no storey: say where it belongs")


@pytest.mark.parametrize("floor", STOREYS)
def test_a_package_imports_only_itself_and_the_packages_below(floor: str) -> None:
    wrong = {}
    for file in sorted((ROOT / floor).rglob("*.py")):
        place = file.relative_to(ROOT).as_posix()
        if place in FACES or place == f"{floor}/__init__.py":
            continue
        package = file.relative_to(ROOT / floor).parts[0].removesuffix(".py")
        if found := wrong_imports(floor, package, file.read_text(encoding="utf-8")):
            wrong[place] = found
    assert wrong == {}


def test_an_import_upwards_is_seen() -> None:
    upwards = "def f():\n    from dass.engine.ranks import Ranks\n    from dass import masks, errors\n"
    assert wrong_imports("dass", "method", upwards) == {"engine", "masks"}
    assert wrong_imports("tasks", "pruning", "import tasks.evaluation\nimport tasks.sources.hub") == {"evaluation"}


def module_imports(floor: str) -> dict[str, set[str]]:
    """Every module of a floor and the modules of that floor it imports, imports inside functions included."""
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file
        for file in (ROOT / floor).rglob("*.py")
        if file.name != "__init__.py"
    }
    found: dict[str, set[str]] = {}
    for module, file in files.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[module] = names & set(files) - {module}
    return found


@pytest.mark.parametrize("floor", MAY_IMPORT)
def test_no_two_modules_import_each_other_in_a_circle(floor: str) -> None:
    waiting = module_imports(floor)
    while ready := {module for module, needs in waiting.items() if not needs & set(waiting)}:
        waiting = {module: needs for module, needs in waiting.items() if module not in ready}
    assert waiting == {}


@pytest.mark.parametrize("floor", MAY_IMPORT)
def test_every_package_says_what_lives_there(floor: str) -> None:
    for file in (ROOT / floor).rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), file
