"""The command line: help that teaches, one line for what is wrong, and the right exit status."""

import contextlib
import json
import logging
import os
import pty
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from flows.cli.app import app
from flows.cli.main import run_command
from flows.initialise import make_workspace
from tasks.workspace.folder import Workspace
from tests.test_flows.conftest import ROOT, Commands

COMMANDS = (
    "init",
    "run",
    "show",
    "serve",
    "join",
    "ui",
    "pin",
    "sources",
    "calibration",
    "baseline",
    "prune",
    "recover",
    "materialize",
    "evaluate",
    "tasks",
    "plots",
    "report",
    "answers",
    "export-audit",
    "audit",
    "settings",
    "doctor",
    "history",
    "diff",
    "compare",
    "verify",
    "promote",
    "rollback",
    "status",
    "gc",
)


@pytest.fixture(autouse=True)
def _environment_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("DASS_WORKSPACE", raising=False)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("initialised") / "ws").root


@pytest.fixture
def ws(initialised: Path, tmp_path: Path) -> Workspace:
    """A workspace that knows the default settings."""
    return Workspace.at(shutil.copytree(initialised, tmp_path / "ws"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    capsys.readouterr()
    assert run_command(list(arguments)) == status
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert line.startswith("dass: ")
    return line


def test_help_lists_every_command_and_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"│ {name} " in told for name in COMMANDS)
    assert "dass run -S prune.sparsity=0.6" in told
    assert 'dass serve --cron "0 2 * * *"' in told


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([name, "--help"]) == 0
    told = capsys.readouterr().out
    assert "--json" in told
    assert f"dass {name}" in told


@pytest.mark.parametrize("name", ["", *COMMANDS, "keys", "keys list", "study", "study outliers", "study sensitivity"])
def test_help_shows_no_escapes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_command([*name.split(), "--help"])
    told = capsys.readouterr().out
    assert told
    assert "\\b" not in told
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", told)


@pytest.mark.parametrize("asked", [{"TERM": "dumb"}, {"TERM": "xterm-256color", "NO_COLOR": "1"}, {}])
def test_a_plain_terminal_gets_no_escape_codes(asked: dict[str, str]) -> None:
    """Help, an error and a table; the last case, colours that nobody refused, shows that the test would see them."""
    ours, its = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **asked}
    environment.pop("NO_COLOR", None) if not asked else None
    code = (
        "import sys; from flows.cli.main import run_command; from flows.cli.output import show_table\n"
        "from rich.table import Table; from tasks.workspace.progress import progress, working\n"
        "run_command(['--help']); run_command(['nonsense']); show_table(Table('one', title='a table'))\n"
        "list(progress(range(3), 'counting'))\nwith working('waiting'): pass"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=its, stderr=its)
    os.close(its)
    told = b""
    with contextlib.suppress(OSError):  # its end is closed
        while piece := os.read(ours, 65536):
            told += piece
    os.close(ours)
    assert process.wait() == 0, told
    assert b"a table" in told
    assert (b"\x1b" in told) == (not asked)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == 0
    assert re.fullmatch(r"dass \d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("before", "behind", "said"),
    [([], [], {"info", "warning"}), (["-q"], [], {"warning"}), ([], ["-q"], {"warning"}), (["keys"], None, set())],
)
def test_quiet_says_warnings_only(
    ws: Workspace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    before: list[str],
    behind: list[str] | None,
    said: set[str],
) -> None:
    def speak(*_: object) -> dict[str, object]:
        for level in ("debug", "info", "warning"):
            getattr(logging.getLogger("dass"), level)(f"a {level} line")
        return {}

    monkeypatch.setattr("tasks.versioning.stages.pin_inputs", speak)
    arguments = ["keys", "list", "-q", "--public"] if behind is None else [*before, "pin", "-w", str(ws.root), *behind]
    capsys.readouterr()
    assert run_command(arguments) == 0
    assert set(re.findall(r"a (\w+) line", capsys.readouterr().err)) == said


def test_verbose_says_more(ws: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.versioning.stages.pin_inputs", lambda ws: logging.getLogger("dass").debug("a detail"))
    assert run_command(["pin", "-w", str(ws.root), "-v"]) == 0
    assert "a detail" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["run", "--nonsense"], "No such option: --nonsense"),
        (["serve"], "Missing option '--cron'"),
        (["init"], "Missing argument 'FOLDER'"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refused(capsys, *arguments)


def test_a_folder_that_is_no_workspace_is_told_how_to_become_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for command in (["run"], ["show"], ["prune"], ["pin"], ["serve", "--cron", "0 2 * * *"]):
        line = refused(capsys, *command, "--workspace", str(tmp_path))
        assert line == f"dass: {tmp_path} is not a workspace: it has no params.yaml. Run: dass init {tmp_path}"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("sparsity: 0.5", "sparsity: 1.5", "between 0 and 1"),
        ("sparsity: 0.5", "sparsity: .nan", "between 0 and 1"),
        ("pattern: unstructured", "pattern: 4:2", "removes nothing or everything"),
        ("method: dass", "method: best", "prune.method is 'best'"),
        ("seed: 0", "sead: 0", "params.yaml: calibration."),
        ("prune:", "prune: [", "not YAML"),
    ],
)
def test_bad_settings_are_one_line_at_every_door(
    capsys: pytest.CaptureFixture[str], ws: Workspace, before: str, after: str, message: str
) -> None:
    text = ws.params.read_text()
    assert before in text
    ws.params.write_text(text.replace(before, after, 1))
    for command in (["run"], ["prune"], ["pin"], ["serve", "--cron", "0 2 * * *"]):
        assert message in refused(capsys, *command, "--workspace", str(ws.root))
    assert sorted(path.name for path in ws.private.iterdir()) == ["lock"]
    assert not ws.base.parent.exists()


def test_a_refused_change_leaves_the_settings_as_they_were(capsys: pytest.CaptureFixture[str], ws: Workspace) -> None:
    before = ws.params.read_bytes()
    line = refused(capsys, "run", "-w", str(ws.root), "-S", "prune.pattern=1:4")
    assert "removes exactly 0.75" in line
    assert ws.params.read_bytes() == before


def test_the_workspace_comes_from_the_environment_too(
    capsys: pytest.CaptureFixture[str], ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASS_WORKSPACE", str(ws.root))
    capsys.readouterr()
    assert run_command(["pin", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sources"]["model"]["revision"] is None


def test_debugging_shows_the_whole_error(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DASS_DEBUG", "1")
    assert run_command(["run", "-w", str(ws.root), "-S", "prune.sparsity=2"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "overrides.py" in told
    assert "between 0 and 1" in told.splitlines()[-1]


def test_json_has_an_error_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments in (["show", "-w", str(tmp_path), "--json"], ["show", "--nonsense", "--json"]):
        assert run_command(arguments) == 2
        told = capsys.readouterr()
        answer = json.loads(told.out)["error"]
        assert (answer["status"], answer["kind"]) == (2, "bad input")
        assert told.err == f"dass: {answer['message']}\n"


# Arguments that a command cannot do without.
GIVEN = {
    "serve": ["--cron", "0 2 * * *"],
    "diff": ["1", "2"],
    "compare": ["1", "2"],
    "verify": ["1"],
    "rollback": ["--reason", "x"],
    "export-audit": ["out.zip"],
    "audit": ["nowhere.zip"],
    "materialize": ["1", "out"],
    "settings": ["nonsense"],
    "keys add": ["key.pem", "--name", "x", "--role", "register"],
    "keys revoke": ["x", "--reason", "x"],
    "init": ["params.yaml"],
}
WITHOUT_WORKSPACE = ("init", "audit", "settings")


def all_commands() -> list[str]:
    found = []
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        found += [f"{name} {each}" for each in command.commands] if hasattr(command, "commands") else [name]
    return found


@pytest.mark.parametrize("name", all_commands())
def test_every_command_that_fails_prints_an_error_object(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("a file, and this no workspace")
    where = [] if name in WITHOUT_WORKSPACE else ["-w", str(tmp_path)]
    assert run_command([*name.split(), *GIVEN.get(name, []), *where, "--json"]) == 2
    told = capsys.readouterr()
    answer = json.loads(told.out)["error"]
    assert (answer["status"], answer["kind"]) == (2, "bad input")
    assert told.err.splitlines()[-1] == f"dass: {answer['message']}"


def test_an_interrupted_command_prints_an_error_object_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    class Interrupted:
        status = 130

    assert run_command(["show", "-w", str(tmp_path), "--json"], Interrupted()) == 130  # type: ignore[arg-type]
    told = capsys.readouterr()
    answer = json.loads(told.out)["error"]
    assert (answer["status"], answer["kind"]) == (130, "interrupted")
    assert told.err == f"dass: {answer['message']}\n"


def test_a_public_key_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["keys", "list", "--public", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["public"].startswith("-----BEGIN PUBLIC KEY-----")
    assert len(told["fingerprint"]) == 64


@pytest.mark.faults("the disk is read-only")
def test_a_read_only_workspace_is_one_line(commands: Commands, new_workspace: Callable[[], Workspace]) -> None:
    ws = new_workspace()
    argv = Commands.argv("dass", "run")
    if os.geteuid() == 0:  # permissions do not stop root: take a file system that is mounted read-only
        script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && shift 0 && cd "$0" && exec "$@"'
        argv = ["unshare", "--mount", "sh", "-c", script, str(ws.root), *argv]
        if not shutil.which("unshare") or subprocess.run([*argv[:5], str(ws.root), "true"]).returncode:
            pytest.skip("this root may not mount")
    else:
        ws.root.chmod(0o555)
    done = subprocess.run(argv, cwd=ws.root, env=commands.environment, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"dass: {ws.private}")
    assert "Free space or permissions are needed there" in line


@pytest.mark.faults("the disk is full")
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    commands: Commands, new_workspace: Callable[[], Workspace]
) -> None:
    ws = new_workspace()
    limit = 100_000  # bytes a file: less than the model's weights, more than what is written beside them
    done = subprocess.run(
        Commands.argv("dass", "sources"),
        cwd=ws.root,
        env=commands.environment,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 3, done.stderr
    assert "Free space or permissions are needed there" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not ws.base.exists()
    assert list(ws.base.parent.glob(".*")) == []


@pytest.mark.parametrize("safe", [["-P"], []], ids=["as dvc.yaml says", "as an older dvc.yaml says"])
def test_a_users_tasks_py_is_not_taken_for_ours(tmp_path: Path, safe: list[str]) -> None:
    for name in ("tasks", "dass", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(f'{__file__} was imported')\n")
    command = [sys.executable, *safe, "-m", "flows", "show"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert "is not a workspace" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("outliers", "--seeds", "0,x"), "--seeds holds 'x': expected whole numbers"),
        (("outliers", "--patterns", "2:4,"), "expected values with a comma between each two"),
        (("outliers", "--patterns", ""), "--patterns is empty"),
        (("outliers", "--sources", "nowhere"), "--sources holds nowhere"),
        (("sensitivity", "--totals", "0.9"), "up to 0.5 by these patterns"),
        (("sensitivity",), "Run: dass run --until baseline"),
    ],
)
def test_a_study_refuses_what_it_cannot_do(
    ws: Workspace, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], told: str
) -> None:
    assert told in refused(capsys, "study", *options, "-w", str(ws.root))
