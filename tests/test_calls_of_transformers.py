"""Whatever is read or fetched through somebody's library goes through one place, which leaves no default open."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("dass", "tasks", "flows", "benchmarks", "examples")

# What can run code, read a pickle, ask on the terminal or fetch; by the last part of the called name.
READERS = {
    *("from_pretrained", "from_config", "pipeline", "load_dataset", "snapshot_download", "hf_hub_download"),
    *("cached_file", "from_pretrained_model", "load_checkpoint_and_dispatch", "load_state_dict_from_url"),
    *("get_class_from_dynamic_module", "torch.load", "pickle.load", "pickle.loads", "joblib.load"),
}
PLACES = {
    "dass/model/pretrained.py": {"from_pretrained", "from_config"},
    "benchmarks/llm_compressor.py": {"from_pretrained"},  # in an environment that has nothing of ours
    "tasks/registry/database.py": {"from_config"},  # alembic's, of MLflow's own migrations
    "tasks/sources/hub.py": {"snapshot_download", "load_dataset"},
}
CLOSED = {
    "from_pretrained": {"trust_remote_code": False, "local_files_only": True},
    "from_config": {"trust_remote_code": False},
}


def reading_calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    """Calls of readers in a module, by name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            whole = ast.unparse(node.func)
            for name in (whole, whole.rpartition(".")[2]):
                if name in READERS:
                    yield name, node


def modules() -> list[Path]:
    return sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))


def test_files_are_read_through_one_place() -> None:
    found: dict[str, set[str]] = {}
    for path in modules():
        for name, _ in reading_calls(path.read_text(encoding="utf-8")):
            found.setdefault(path.relative_to(ROOT).as_posix(), set()).add(name)
    assert found == PLACES


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("dass/model/pretrained.py", "from_pretrained"),
        ("dass/model/pretrained.py", "from_config"),
        ("benchmarks/llm_compressor.py", "from_pretrained"),
    ],
)
def test_that_place_trusts_no_code_and_fetches_nothing(place: str, name: str) -> None:
    source = (ROOT / place).read_text(encoding="utf-8")
    calls = [call for found, call in reading_calls(source) if found == name]
    assert calls
    for call in calls:
        given = {word.arg: word.value.value for word in call.keywords if isinstance(word.value, ast.Constant)}
        assert CLOSED[name].items() <= given.items(), ast.unparse(call)


def test_a_call_elsewhere_is_seen() -> None:
    sources = {
        "from_pretrained": "from transformers import AutoModel\ndef f(x):\n    return AutoModel.from_pretrained(x)",
        "torch.load": "import torch\nweights = torch.load('x.bin', weights_only=True)",
        "load_dataset": "import datasets as d\nd.load_dataset('org/name')",
        "pipeline": "from transformers import pipeline\nx = pipeline('text-generation')",
    }
    for name, source in sources.items():
        assert name in {found for found, _ in reading_calls(source)}
