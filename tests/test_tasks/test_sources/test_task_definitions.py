"""lm_eval's tasks by name: as its own index has them, and what is told of a name that it does not have."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from dass.errors import InputError
from tasks.sources import task_definitions
from tasks.sources.task_data import task_sources
from tasks.sources.task_definitions import (
    Definition,
    TaskGroup,
    definition_by_file_name,
    groups_with_means,
    lm_eval_version,
    single_tasks,
)
from tasks.workspace.settings import Evaluate

KNOWN = {
    "arc_easy": Definition("task", "arc/arc_easy.yaml", "allenai/ai2_arc"),
    "arc_challenge": Definition("task", "arc/arc_challenge.yaml", "allenai/ai2_arc"),
    "gsm8k": Definition("task", "gsm8k/gsm8k.yaml", "openai/gsm8k", writes=True),
    "ai2_arc": Definition("group", members=("arc_challenge", "arc_easy")),
    "sums": Definition("group", members=("gsm8k", "arc_easy"), means=(("acc", True),)),
    "squadv2": Definition("class", "squadv2/squadv2.yaml"),
    "both": Definition("group", members=("ai2_arc", "gsm8k", "arc_easy", "both")),
}


@pytest.fixture(autouse=True)
def _known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user for whom the names of a few tasks are kept."""
    monkeypatch.setenv("DASS_CACHE", str(tmp_path))
    kept = tmp_path / "lm_eval" / f"definitions-{lm_eval_version()}.json"
    kept.parent.mkdir()
    kept.write_text(json.dumps({name: asdict(each) for name, each in KNOWN.items()}))
    task_definitions._definition.cache_clear()


def asked(**values: object) -> Evaluate:
    return Evaluate.model_validate({"samples": 1, "sequence_length": 8, **values})


def test_groups_are_taken_apart_and_each_task_is_asked_once() -> None:
    assert list(single_tasks(["both"])) == ["arc_challenge", "arc_easy", "gsm8k"]
    assert list(single_tasks(["arc_easy", "ai2_arc"])) == ["arc_easy", "arc_challenge"]


def test_only_a_group_that_lm_eval_averages_has_a_figure_of_its_own() -> None:
    assert groups_with_means(["sums", "ai2_arc", "gsm8k"]) == {"sums": TaskGroup(["gsm8k", "arc_easy"], {"acc": True})}


def test_nearest_names_are_told() -> None:
    with pytest.raises(InputError, match=r"^evaluate.tasks: lm_eval .* knows no task 'arc_esay'. Nearest: arc_easy"):
        single_tasks(["arc_esay"])
    with pytest.raises(InputError, match="^evaluate.task_files: lm_eval .* knows no task 'gsmk8'. Nearest: gsm8k"):
        task_sources(asked(tasks=["gsm8k"], task_files={"gsmk8": "x.jsonl"}))
    with pytest.raises(InputError, match="See: lm-eval ls tasks"):
        single_tasks(["???"])


def test_a_task_of_a_kind_that_takes_no_documents_is_refused() -> None:
    with pytest.raises(InputError, match="squadv2 is a Python class of lm_eval's"):
        single_tasks(["squadv2"])
    with pytest.raises(InputError, match="ai2_arc is a group of tasks. Name a file for each"):
        task_sources(asked(tasks=["ai2_arc"], task_files={"ai2_arc": "x.jsonl"}))
    with pytest.raises(InputError, match="expected a local file of JSONL or parquet"):
        task_sources(asked(tasks=["gsm8k"], task_files={"gsm8k": "pypi://a==1/b"}))


def test_documents_come_from_the_file_or_the_hub() -> None:
    found = task_sources(
        asked(tasks=["both"], task_files={"arc_easy": "a.jsonl", "gsm8k": {"test": "t", "train": "u"}})
    )
    uris = {task: {split: source.uri for split, source in splits.items()} for task, splits in found.items()}
    assert uris == {
        "arc_challenge": {"hub": "allenai/ai2_arc"},
        "arc_easy": {"documents": "a.jsonl"},
        "gsm8k": {"test": "t", "train": "u"},
    }


def test_a_task_is_found_by_its_files_name() -> None:
    for name in ("arc_easy", "arc_challenge", "gsm8k"):
        assert definition_by_file_name(name) == KNOWN[name]
    assert definition_by_file_name("winogrande") is None  # defined in winogrande/default.yaml
    assert definition_by_file_name("../arc/arc_easy") is None


@pytest.mark.slow
def test_what_is_found_by_file_name_is_what_lm_eval_finds() -> None:
    every = task_definitions._from_lm_eval()
    found = {name: definition_by_file_name(name) for name in every}
    assert {name: each for name, each in found.items() if each is not None and each != every[name]} == {}
    assert {"arc_easy", "arc_challenge", "hellaswag", "piqa", "gsm8k"} <= {name for name in found if found[name]}
