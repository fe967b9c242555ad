"""What git, editors and full disks leave of a workspace's own files is told in one line, at every door."""

import json
import re
import shutil
from pathlib import Path

import pytest

from dass.errors import InputError
from flows.cli.main import run_command
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import load_settings
from tasks.workspace.small_files import check_pipeline_files

ROOT = Path(__file__).parents[3]
CONFLICT = "<<<<<<< HEAD\n{}=======\n{}>>>>>>> branch\n"
FILES = {"params.yaml": "a: 1\n", "dvc.yaml": "stages: {}\n", "dvc.lock": "schema: '2.0'\n", "dass.lock.json": "{}\n"}
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(10 * [f'*{before}'])}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    return Workspace(tmp_path)


def refused(ws: Workspace, name: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        check_pipeline_files(ws)
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_whole_files_pass_and_so_does_a_dvc_lock_that_is_empty_or_absent(ws: Workspace) -> None:
    check_pipeline_files(ws)
    (ws.root / "dvc.lock").write_text("\n")
    check_pipeline_files(ws)
    (ws.root / "dvc.lock").unlink()
    ws.lock_file.unlink()
    check_pipeline_files(ws)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_with_what_to_do(ws: Workspace, name: str) -> None:
    path, whole = ws.root / name, FILES[name]
    path.write_text(whole + CONFLICT.format(whole, whole))
    refused(ws, name, r"line 2 is a conflict marker \(<<<<<<<\): a git merge is not resolved\. Resolve it there")
    path.write_bytes(b"a: \xff\n")
    refused(ws, name, "is not UTF-8 text")
    path.write_text("[]")
    refused(ws, name, "holds a list: expected keys with values. Restore it")
    path.write_text('{"a": ' + "[" * 10_000 + "]" * 10_000 + "}")
    refused(ws, name, "nested deeper|not JSON")
    path.write_text('{"a": 1, "a": 2}')
    refused(ws, name, "not YAML|not JSON")
    path.write_text("{")
    refused(ws, name, "not YAML|not JSON")
    with path.open("wb") as sparse:
        sparse.truncate(20 << 30)
    refused(ws, name, "has 21474836480 bytes: expected at most 1048576")
    path.unlink()
    path.mkdir()
    refused(ws, name, "is no file")
    path.rmdir()
    if name != "dvc.lock":
        path.write_text("")
        refused(ws, name, "holds nothing|not JSON")


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml", "dvc.lock"])
def test_aliases_are_counted_as_what_they_stand_for(ws: Workspace, name: str) -> None:
    (ws.root / name).write_text("base: &base {a: 1}\nother: *base\n")
    check_pipeline_files(ws)
    (ws.root / name).write_text(BOMB)
    refused(ws, name, "holds more than 10000 values, its aliases counted")
    (ws.root / name).write_text("\ta: 1\n")
    refused(ws, name, "line 1: not YAML")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    root = tmp_path / "ws"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    shutil.copy(ROOT / "params.yaml", root)
    shutil.copy(ROOT / "flows" / "templates" / "pipeline.yaml", root / "dvc.yaml")
    (root / "dass.lock.json").write_text(json.dumps({"sources": {}, "code": {}}))
    return root


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml", "dvc.lock", "dass.lock.json"])
@pytest.mark.parametrize("command", [["pin"], ["calibration"]], ids=" ".join)
def test_every_door_ends_with_status_2(
    workspace: Path, name: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / name).write_text(CONFLICT.format("a: 1\n", "a: 2\n"))
    assert run_command([*command, "--workspace", str(workspace)]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"dass: {name} line 1 is a conflict marker")


SCHEDULE = ("serve", "--cron", "0 2 * * *")
DOORS: dict[str, list[tuple[str, ...]]] = {
    "params.yaml": [("run",), ("run", "--dry-run"), ("status",), ("sweep", "-S", "prune.alpha=0.3,0.5"), SCHEDULE],
    "dvc.yaml": [("run", "--dry-run"), ("prune",), ("sweep", "-S", "prune.alpha=0.3,0.5"), SCHEDULE],
}


@pytest.mark.parametrize(("name", "command"), [(name, door) for name, doors in DOORS.items() for door in doors])
def test_what_dvc_reads_in_quotes_only_is_told_at_every_door(
    workspace: Path, name: str, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """`uri: [pypi://A, pypi://B]` is YAML, but not to the reader that DVC has, which calls such a file corrupted."""
    with (workspace / name).open("a") as file:
        file.write("more: {uri: [a, pypi://b]}\n")
    assert run_command([*command, "--workspace", str(workspace)]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    why = 'more.uri has a text in brackets that DVC reads in quotes only. Write it there as "pypi://b"'
    assert re.fullmatch(rf"dass: {name} line \d+: {re.escape(why)}", told)


def test_a_text_in_brackets_is_named_by_its_key(ws: Workspace) -> None:
    for written, key, quoted in (
        ("a: {b: [x, 'k:v', k:v]}", "a.b", "k:v"),
        ("a:\n  - b\n  - [what?]", "a", "what?"),
        ("a: {b: 1, http://x: 2}", "a.http://x", "http://x"),
    ):
        ws.params.write_text(f"{written}\n")
        refused(ws, "params.yaml", re.escape(f": {key} has a text in brackets that DVC reads in quotes only. Write"))
        with pytest.raises(InputError, match=re.escape(json.dumps(quoted))):
            load_settings(ws.params)


def test_show_and_history_refuse_damaged_settings(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "params.yaml").write_text(CONFLICT.format("a: 1\n", "a: 2\n"))
    for command in ("show", "history"):
        assert run_command([command, "--workspace", str(workspace)]) == 2, command
        assert "params.yaml line 1 is a conflict marker" in capsys.readouterr().err


def test_a_dvc_lock_that_dvc_cannot_use_is_bad_input(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "dvc.lock").write_text("schema: '2.0'\nstages:\n  prune: nothing\n")
    assert run_command(["pin", "--workspace", str(workspace)]) == 2
    assert "dvc.lock" in capsys.readouterr().err


def test_settings_are_read_within_the_same_bounds(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(BOMB)
    with pytest.raises(InputError, match="params.yaml holds more than 10000 values"):
        load_settings(tmp_path / "params.yaml")
