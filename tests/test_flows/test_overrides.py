"""`-S section.key=value` writes params.yaml, comments and all, or refuses in one line and writes nothing."""

import io
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from dass.errors import InputError
from flows.initialise import template
from flows.overrides import change_settings, rewrite
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, Source, load_settings
from tasks.workspace.small_files import parse_yaml
from tests.unwritten import state

ROOT = Path(__file__).parents[2]
BOMB = "".join(
    f",&{name} [{','.join(10 * [f'*{before}'])}]" for before, name in pairwise("abcdefghij")
)  # 10 to the 10th


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    return Workspace(tmp_path)


def changed_lines(ws: Workspace) -> list[str]:
    before = (ROOT / "params.yaml").read_text().splitlines()
    after = ws.params.read_text().splitlines()
    assert len(before) == len(after)
    return [line for line, old in zip(after, before, strict=True) if line != old]


def test_only_the_changed_line_changes_and_its_comment_stays(ws: Workspace) -> None:
    assert change_settings(ws, ["prune.sparsity=0.25"]) == {"prune.sparsity": (0.5, 0.25)}
    assert changed_lines(ws) == [
        "  sparsity: 0.25              # share of MLP weights removed; null takes what the pattern implies"
    ]
    assert load_settings(ws.params).prune.sparsity == 0.25


@pytest.mark.parametrize(
    ("changes", "section", "key", "value"),
    [
        (["prune.pattern=2:4"], "prune", "pattern", "2:4"),
        (["prune.pattern=1:4", "prune.sparsity=null"], "prune", "sparsity", None),
        (["evaluate.samples=null"], "evaluate", "samples", None),
        (["prune.alpha=1"], "prune", "alpha", 1.0),
        (["engine.batch_tokens=256"], "engine", "batch_tokens", 256),
        (["sources.evaluation.split=test"], "sources", "evaluation", None),
    ],
)
def test_values_are_read_as_yaml(ws: Workspace, changes: list[str], section: str, key: str, value: object) -> None:
    change_settings(ws, changes)
    read = getattr(getattr(load_settings(ws.params), section), key)
    assert read.split == "test" if key == "evaluation" else read == value


def test_a_section_that_the_file_leaves_out_can_be_changed(ws: Workspace) -> None:
    shutil.copy(ROOT / "examples" / "gemma-3-270m" / "params.yaml", ws.params)  # has no section promote
    change_settings(ws, ["promote.max_ratio=3", "promote.max_task_drop.arc=0.1"])
    assert load_settings(ws.params).promote.max_ratio == 3
    assert load_settings(ws.params).promote.max_task_drop == {"arc": 0.1}


def test_a_source_is_given_whole_and_then_its_digest(ws: Workspace) -> None:
    change_settings(ws, ["sources.model={uri: pypi://a==1/b?}", f"sources.model.sha256={64 * 'a'}"])
    assert load_settings(ws.params).sources.model == Source(uri="pypi://a==1/b?", sha256=64 * "a")


def test_a_pattern_is_quoted_so_that_no_reader_takes_it_for_a_number(ws: Workspace) -> None:
    change_settings(ws, ["prune.pattern=2:4"])
    assert changed_lines(ws)[0].startswith('  pattern: "2:4" ')


def test_the_same_value_again_changes_nothing(ws: Workspace) -> None:
    before = state(ws.params)
    assert change_settings(ws, ["prune.sparsity=0.5"]) == {}
    assert state(ws.params) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("prune.sparsity=0", r"prune\.sparsity|between 0 and 1"),
        ("prune.sparsity=1", "between 0 and 1"),
        ("prune.sparsity=1.5", "between 0 and 1"),
        ("prune.sparsity=.nan", "between 0 and 1"),
        ("prune.pattern=4:2", "removes nothing or everything"),
        ("prune.pattern=a:b", "expected .*unstructured"),
        ("prune.pattern=1:4", "removes exactly 0.75"),
        ("prune.method=best", r"prune\.method is 'best'"),
        ("prune.colour=red", r"prune\.colour: unknown key"),
        ("colour.red=1", r"colour: unknown key\. Expected one of sources"),
        ("prune.colour.red=1", r"prune\.colour: unknown key"),
        ("prune.sparsity.more=1", r"prune\.sparsity\.more: unknown key"),
        ("calibration.samples=0", r"calibration\.samples is 0"),
        ("calibration.seed=-1", r"calibration\.seed is -1"),
        ("evaluate.sequence_length=1", r"evaluate\.sequence_length is 1"),
        ("engine.device=tpu", r"engine\.device is 'tpu'"),
        ("prune.sparsity", "expected section.key=value"),
        ("sparsity=0.5", "expected section.key=value"),
        ("prune.sparsity=[", "not YAML"),
        ("prune.sparsity=" + "[" * 5000, "nested deeper than 50|not YAML"),
        ("prune.pattern=" + "[" * 60 + "]" * 60, "nested deeper than 50"),
        ("prune.pattern=[&a [x,x,x,x,x,x,x,x,x,x]" + BOMB + "]", "holds more than 10000 values, its aliases counted"),
        ("prune.pattern=&a [*a]", "nested deeper than 50|not YAML"),
        ("sources.model.uri=pypi://a==1/b", None),
        ("sources.model.sha256=null", "sha256 is missing"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_writes_nothing(ws: Workspace, change: str, message: str | None) -> None:
    before = ws.params.read_bytes()
    if message is None:
        assert change_settings(ws, [change])
        return
    with pytest.raises(InputError, match=message) as refused:
        change_settings(ws, ["prune.alpha=0.25", change])
    assert len(str(refused.value).splitlines()) == 1
    assert ws.params.read_bytes() == before
    assert [path.name for path in ws.root.iterdir()] == ["params.yaml"]


def test_what_others_write_as_yaml_stays_as_it_was(ws: Workspace) -> None:
    def written() -> str:
        stream = io.StringIO()
        YAML().dump({"revision": None}, stream)
        return stream.getvalue()

    before = written()
    change_settings(ws, ["prune.sparsity=null"])
    assert "sparsity: null" in ws.params.read_text()
    assert written() == before


def test_settings_that_are_not_accepted_are_not_written(ws: Workspace) -> None:
    before = ws.params.read_bytes()

    def refuse(settings: Settings) -> None:
        assert settings.engine.device == "cuda"
        raise InputError("no such device")

    with pytest.raises(InputError, match="no such device"):
        change_settings(ws, ["engine.device=cuda"], accept=refuse)
    assert ws.params.read_bytes() == before


def test_lists_and_mappings_are_changed_again_and_again() -> None:
    text = template("params.yaml")
    for key, value in (
        ("evaluate.tasks", ["piqa", "arc_easy"]),
        ("evaluate.task_files", {"piqa": {"validation": "a.jsonl", "train": "b.jsonl"}}),
        ("promote.max_task_drop", {"piqa": {"drop": 0.1, "certain": True}}),
        ("evaluate.tasks", []),
        ("evaluate.task_files", {}),
        ("promote.max_task_drop", {}),
        ("evaluate.tasks", ["piqa"]),
    ):
        _, text, _ = rewrite(text, [(key, value)], "-S")
        section, name = key.split(".")
        assert parse_yaml(text, "params.yaml")[section][name] == value
    assert re.search(r"^  tasks: \[piqa\] +# zero-shot tasks by", text, re.MULTILINE)


def test_addresses_in_brackets_are_written_so_that_dvc_reads_them(ws: Workspace) -> None:
    from dvc.utils.serialize import load_yaml

    texts = "calibration.texts={code: {uri: pypi://x==1/code.txt, sha256: " + "ab" * 32 + ", share: 0.5}}"
    change_settings(ws, ["notify.urls=[https://host/x, env:HOOK]", texts])
    assert load_settings(ws.params).notify.urls == ["https://host/x", "env:HOOK"]
    read = load_yaml(str(ws.params))
    assert read["notify"]["urls"] == ["https://host/x", "env:HOOK"]
    assert read["calibration"]["texts"]["code"]["uri"] == "pypi://x==1/code.txt"
