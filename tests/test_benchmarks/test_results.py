import sys
from pathlib import Path

import pytest

from benchmarks import results as module
from benchmarks.results import Results, called_as, environment
from dass.errors import InputError


def test_what_was_measured_is_found_after_an_interruption(tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    Results(file).add({"method": "dass", "turn": 0}, {"seconds": 2.5})
    again = Results(file)
    assert again.find({"method": "dass", "turn": 1}) is None
    found = again.find({"method": "dass", "turn": 0})
    assert found is not None
    assert found["seconds"] == 2.5
    assert found.keys() >= {"commit", "when"}


def test_fresh_forgets(tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    Results(file).add({"turn": 0}, {"seconds": 2.5})
    assert Results(file, fresh=True).find({"turn": 0}) is None


def test_figures_of_two_machines_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "speed.json"
    here = environment()
    monkeypatch.setattr(module, "environment", lambda: here | {"cores": 96})
    Results(file).add({"turn": 0}, {"seconds": 0.1})
    monkeypatch.setattr(module, "environment", lambda: here)
    with pytest.raises(InputError, match=r"measured with cores 96, here it is \d+: .* Add --fresh"):
        Results(file)


def test_the_environment_names_machine_and_versions() -> None:
    here = environment()
    assert here["memory_gib"] > 0
    assert all(here[name] for name in ("cpu", "cores", "python", "torch", "transformers"))


def test_a_call_is_told_with_the_names_of_files_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    called = ["/ours/benchmarks/cost.py", "--tasks", "piqa=/data/of mine/piqa.jsonl", "/data/a.yaml", "docs/b.yaml"]
    monkeypatch.setattr(sys, "argv", called)
    assert called_as() == "python cost.py --tasks piqa=piqa.jsonl a.yaml docs/b.yaml"
