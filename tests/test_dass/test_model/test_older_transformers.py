"""What dass writes is read by the oldest transformers that we name, with the same logits and the same tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import dass
from dass.model.older_keys import OLDEST_TRANSFORMERS
from tasks.sources.base import fetch_base
from tasks.workspace.folder import Workspace
from tests.gguf_files import write_tiny_gguf
from tests.models import EVERY_FAMILY, save_tiny_checkpoint, tiny_model, tiny_tokenizer, tiny_tokens
from tests.older_transformers import read_folders
from tests.test_dass.test_model.test_older_keys import LINEAR, LLAMA3, LONGROPE, PLAIN, SLIDING, YARN

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow

BY_TYPE = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        family: (family, {"rope_parameters": PLAIN})
        for family in EVERY_FAMILY
        if family not in ("llama3", "gemma3_text")
    },
    "llama3": ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}),
    "linear": ("mistral", {"rope_parameters": LINEAR}),
    "yarn": ("qwen2", {"rope_parameters": {**YARN, "rope_theta": 1e6}}),
    "dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 5e5}}),
    "partial": ("glm", {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}}),
    "longrope": (
        "phi3",
        {
            "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 32},
            "original_max_position_embeddings": 32,
        },
    ),
    "gemma3_text": (
        "gemma3_text",
        {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": SLIDING}, **BY_TYPE},
    ),
    "olmo3": (
        "olmo3",
        {"rope_parameters": {"full_attention": {**YARN, "rope_theta": 777.0}, "sliding_attention": SLIDING}, **BY_TYPE},
    ),
    "bfloat16": ("llama", {"rope_parameters": PLAIN, "dtype": torch.bfloat16}),
}


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, first on the path, puts the oldest transformers in the place of ours; torch stays."""
    folder = tmp_path_factory.mktemp("older")
    wanted = f"transformers=={OLDEST_TRANSFORMERS}.*"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--target", str(folder)]
    subprocess.run([*install, "--no-deps", wanted], check=True)
    told = subprocess.run(
        [sys.executable, "-c", "import importlib.metadata as m; print(*m.requires('transformers'), sep='\\n')"],
        env={**os.environ, "PYTHONPATH": str(folder)},
        check=True,
        capture_output=True,
        text=True,
    )
    needs = [
        line for line in told.stdout.splitlines() if line.startswith(("tokenizers", "huggingface")) and ";" not in line
    ]
    assert len(needs) == 2, needs
    subprocess.run([*install, "--no-deps", *needs], check=True)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder of every kind that dass writes, most of them by prune_checkpoint."""
    made = tmp_path_factory.mktemp("made")
    found = {}
    for name, (family, changes) in VARIANTS.items():
        base = save_tiny_checkpoint(made / f"{name}-base", family, **changes)
        dass.prune_checkpoint(base, made / name, tiny_tokens(), min_expert_tokens=24)
        found[name] = made / name
    return found | {"from a GGUF": _base_from_gguf(made / "gguf")}


def _base_from_gguf(root: Path) -> Path:
    """artifacts/base of a workspace."""
    from tasks.versioning.pins import refresh_pins
    from tasks.workspace.settings import validate_settings
    from tests.workspaces import tiny_settings

    root.mkdir()
    write_tiny_gguf(root / "tiny.gguf", tiny_model(rope_parameters=PLAIN))
    values = tiny_settings()
    values["sources"] = {source: {"uri": "tiny.gguf"} for source in values["sources"]}
    ws, settings = Workspace(root), validate_settings(values, "test")
    refresh_pins(ws, settings)
    fetch_base(ws, settings)
    return ws.base


@pytest.fixture(scope="module")
def both(
    older: Path, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the oldest and what our own transformers make of the folders."""
    out = tmp_path_factory.mktemp("read") / "read.json"
    paths = list(folders.values())
    command = [sys.executable, str(ROOT / "tests" / "older_transformers.py"), str(out), *map(str, paths)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(older)}, check=True, timeout=600)
    return json.loads(out.read_text()), read_folders(paths)


@pytest.mark.parametrize("name", [*VARIANTS, "from a GGUF"])
def test_it_is_read_alike(name: str, folders: dict[str, Path], both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    then, now = (read[str(folders[name])] for read in both)
    assert isinstance(then, dict), then
    assert isinstance(now, dict), now
    assert then["version"].startswith(f"{OLDEST_TRANSFORMERS}.")
    assert not now["version"].startswith("4.")
    for what in ("missing", "dtype", "ids", "ends", "generated"):
        assert then[what] == now[what], what
    tolerance = 0.05 if now["dtype"] == "torch.bfloat16" else 1e-4
    difference = (torch.tensor(then["logits"]) - torch.tensor(now["logits"])).abs().max()
    assert difference < tolerance


def test_without_the_older_keys_it_is_read_otherwise(older: Path, tmp_path: Path) -> None:
    """The test above can fail: as transformers 5 saves it, θ and the tokenizer are lost."""
    tiny_model(rope_parameters=PLAIN).save_pretrained(tmp_path / "model")
    tiny_model(rope_parameters=PLAIN).save_pretrained(tmp_path / "both")
    tiny_tokenizer().save_pretrained(tmp_path / "both")
    out = tmp_path / "read.json"
    command = [sys.executable, str(ROOT / "tests" / "older_transformers.py"), str(out)]
    paths = [tmp_path / "model", tmp_path / "both"]
    subprocess.run([*command, *map(str, paths)], env={**os.environ, "PYTHONPATH": str(older)}, check=True)
    then, now = json.loads(out.read_text()), read_folders(paths)
    logits = [torch.tensor(read[str(paths[0])]["logits"]) for read in (then, now)]
    assert (logits[0] - logits[1]).abs().max() > 0.01
    assert "TokenizersBackend does not exist" in then[str(paths[1])]
