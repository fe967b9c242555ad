"""The Python of README and of the API's page passes `mypy --strict`, as a caller's own code would be checked."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GIVEN = """
from pathlib import Path
from typing import Any

import dass
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

model: PreTrainedModel
tokenizer: PreTrainedTokenizerBase
texts: list[str]
input_ids: Tensor
weight: Tensor
"""
WRONG = """
dass.prnue(model, input_ids)
dass.prune(model, input_ids, pattern=24)
dass.prune(model, input_ids, onyl=["up_proj"])
"""


def snippets(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def errors_of(source: str, folder: Path) -> list[str]:
    """What `mypy --strict` says of a caller's module. Of the library's own files another run of mypy judges."""
    file = folder / "caller.py"
    file.write_text(GIVEN + source, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, 1), done.stderr
    return [line for line in done.stdout.splitlines() if "caller.py:" in line and ": error: " in line]


@pytest.mark.slow
def test_the_python_on_the_pages_is_typed_and_what_is_wrong_is_seen(tmp_path: Path) -> None:
    found = [snippet for page in ("README.md", "docs/python.md") for snippet in snippets(page)]
    assert len(found) >= 4
    assert errors_of("\n".join(found), tmp_path) == []
    assert [re.search(r"\[([\w-]+)\]$", line)[1] for line in errors_of(WRONG, tmp_path)] == [  # type: ignore[index]
        "attr-defined",
        "arg-type",
        "call-arg",
    ]
