"""`dass` stands alone: torch, transformers, safetensors and the standard library; numpy for selection."""

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {"torch", "transformers", "safetensors", "dass", *sys.stdlib_module_names}
ALSO = {"dass/method/selection.py": {"numpy"}}  # its partition: torch has nothing as fast

# Imports every module of dass, prunes a model, and looks at what that has loaded.
PROGRAM = """
import sys
from importlib import import_module
from pkgutil import walk_packages

import dass
for module in walk_packages(dass.__path__, "dass."):
    import_module(module.name)
import torch
from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)
report = dass.prune(LlamaForCausalLM(config), torch.arange(32).view(2, 16), pattern="2:4")
assert report.sparsity == 0.5
"""
CHECK = """
import sys
loaded = {name.partition(".")[0] for name in sys.modules}
others = loaded & set("prefect mlflow dvc datasets matplotlib ruamel typer tasks flows".split())
sys.exit(f"loaded: {sorted(others)}" if others else 0)
"""


def run_alone(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240)


def imported_by(source: str) -> set[str]:
    """Top-level packages a module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_pruning_loads_nothing_of_the_floors_above() -> None:
    finished = run_alone(PROGRAM + CHECK)
    assert finished.returncode == 0, finished.stderr


def test_the_check_above_can_fail() -> None:
    finished = run_alone("import tasks" + CHECK)
    assert finished.returncode != 0
    assert "loaded: ['tasks']" in finished.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "dass").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_is_an_allowed_one(path: Path) -> None:
    assert imported_by(path.read_text(encoding="utf-8")) <= ALLOWED | ALSO.get(str(path.relative_to(ROOT)), set())


def test_importing_dass_alone_does_not_import_torch() -> None:
    program = "import dass, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_the_public_names_are_these() -> None:
    import dass

    assert set(dass.__all__) == {
        "AppliedReport",
        "CheckpointReport",
        "InputError",
        "LayerReport",
        "NumericalError",
        "PlanOptions",
        "PruneReport",
        "__version__",
        "apply_masks",
        "calibration_windows",
        "load",
        "pattern_of",
        "prune",
        "prune_checkpoint",
    }
    assert all(getattr(dass, name) for name in dass.__all__)
    assert set(dass.__all__) <= set(dir(dass))
    assert dass.__version__ == version("dass")
    with pytest.raises(AttributeError, match="no attribute 'prnue'"):
        _ = dass.prnue  # type: ignore[attr-defined]


def test_loading_a_version_needs_the_floors_above_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import dass

    for module in ("tasks", "tasks.registry.loading"):
        monkeypatch.setitem(sys.modules, module, None)  # as where only this package is installed
    with pytest.raises(ImportError, match=r"^dass\.load needs the whole product, with tasks/ and MLflow"):
        dass.load("models:/name/1")
