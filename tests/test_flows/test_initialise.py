"""`dass init`: a whole workspace or nothing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dass.errors import InputError
from flows.cli.main import run_command
from flows.initialise import make_workspace, registered_name, template
from tasks.sources.pinned import read_pins
from tasks.workspace.settings import load_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _quiet(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path_factory.mktemp("site")))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", "/")


def dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, capture_output=True, text=True)


def test_a_new_workspace_has_the_default_settings_and_dvc_reads_its_pipeline(tmp_path: Path) -> None:
    ws = make_workspace(tmp_path / "new" / "ws")
    assert ws.params.read_bytes() == (ROOT / "params.yaml").read_bytes()
    assert set(read_pins(ws)["code"]) == {
        "sources",
        "calibration",
        "baseline",
        "prune",
        "recover",
        "materialize",
        "evaluate",
        "tasks",
        "plots",
    }
    assert "sources" in dvc(ws.root, "stage", "list").stdout
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_settings_are_taken_and_local_paths_are_meant_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("words")
    monkeypatch.chdir(tmp_path)
    ws = make_workspace(Path("ws"), evaluation="text.txt", changes=["prune.pattern=2:4"])
    settings = load_settings(ws.params)
    assert settings.sources.evaluation.uri == str(tmp_path / "text.txt")
    assert settings.sources.evaluation.sha256 is None
    assert settings.prune.pattern == "2:4"
    assert "# keep" not in ws.params.read_text()
    assert "# windows" in ws.params.read_text()


def test_a_source_inside_the_workspace_moves_with_it(tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / "text.txt").write_text("words")
    ws = make_workspace(tmp_path / "ws", evaluation=str(tmp_path / "ws" / "text.txt"))
    assert load_settings(ws.params).sources.evaluation.uri == "./text.txt"


def test_an_existing_workspace_is_refused_and_left_alone(tmp_path: Path) -> None:
    ws = make_workspace(tmp_path / "ws")
    ws.params.write_text("mine")
    with pytest.raises(InputError, match=r"has a params\.yaml already"):
        make_workspace(tmp_path / "ws")
    assert ws.params.read_text() == "mine"


@pytest.mark.parametrize("changes", [["prune.sparsity=2"], ["nothing"]])
def test_a_refused_setting_leaves_nothing_behind(tmp_path: Path, changes: list[str]) -> None:
    with pytest.raises(InputError):
        make_workspace(tmp_path / "ws", changes=changes)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_source_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        make_workspace(tmp_path / "ws", evaluation=str(tmp_path / "absent.txt"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.bin", "no model", "model.bin is no GGUF file"),
        ("folder/config.json", "{}", "its config.json names no model_type"),
        ("folder/notes.txt", "", "No config.json in"),
        ("folder/config.json", '{"model_type": "llama"}', "holds no weights"),
    ],
)
def test_a_path_that_is_no_model_leaves_nothing_behind(tmp_path: Path, name: str, content: str, message: str) -> None:
    place = tmp_path / "there" / name
    place.parent.mkdir(parents=True)
    place.write_text(content)
    model = tmp_path / "there" / name.split("/")[0]
    with pytest.raises(InputError, match=message):
        make_workspace(tmp_path / "ws", str(model))
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_init_says_what_is_missed_outside_git(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["init", str(tmp_path / "a b")]) == 0
    told = capsys.readouterr()
    assert f"dass run --workspace '{tmp_path}/a b'" in told.out
    assert "It is not in git" in told.err
    subprocess.run(["git", "init", "-q", str(tmp_path / "repository")], check=True)
    assert run_command(["init", str(tmp_path / "repository" / "ws")]) == 0
    assert "not in git" not in capsys.readouterr().err


def test_a_digest_without_its_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--model-sha256 is the digest of --model"):
        make_workspace(tmp_path / "ws", model_sha256=64 * "a")


def test_a_folder_with_files_keeps_them_and_its_ignore_rules(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".gitignore").write_text("*.log")
    make_workspace(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    rules = (tmp_path / ".gitignore").read_text().splitlines()
    assert {"*.log", "/artifacts/", "/.dass/"} <= set(rules)


@pytest.mark.parametrize(
    "name",
    ["artifacts/base/model.safetensors", "artifacts/pruned/note", "metrics/evaluation.json", "mlflow.db", ".dass/x"],
)
def test_what_the_stages_would_replace_is_in_the_way(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="already: nothing was changed"):
        make_workspace(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name.split("/")[0]]


def test_links_and_ignore_files_that_are_no_text_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").symlink_to("elsewhere.yaml")
    with pytest.raises(InputError, match=r"has a params\.yaml already"):
        make_workspace(tmp_path)
    (tmp_path / "params.yaml").unlink()
    (tmp_path / "shared-rules").write_text("*.bin\n", encoding="utf-8")
    (tmp_path / ".gitignore").symlink_to("shared-rules")
    with pytest.raises(InputError, match=r"\.gitignore is no text file that rules can be added to"):
        make_workspace(tmp_path)
    assert (tmp_path / "shared-rules").read_text(encoding="utf-8") == "*.bin\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".gitignore", "shared-rules"]


def test_inside_git_dvc_leaves_small_files_to_git_and_outside_it_does_without(tmp_path: Path) -> None:
    outside = make_workspace(tmp_path / "outside")
    assert "no_scm" not in (outside.root / ".dvc" / "config").read_text()
    assert "no_scm = true" in (outside.root / ".dvc" / "config.local").read_text()
    assert dvc(outside.root, "status").returncode == 0

    repository = tmp_path / "repository"
    repository.mkdir()
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    inside = make_workspace(repository / "deep" / "ws")
    assert not (inside.root / ".dvc" / "config.local").exists()
    assert dvc(inside.root, "status").returncode == 0
    untracked = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all"], cwd=repository, capture_output=True, text=True
    ).stdout
    assert set(re.findall(r"deep/ws/(\S+)", untracked)) == {
        ".dvc/.gitignore",
        ".dvc/config",
        ".dvcignore",
        ".gitignore",
        "dass.lock.json",
        "dvc.yaml",
        "params.yaml",
    }


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("HuggingFaceTB/SmolLM2-135M@main", "smollm2-135m-dass"),
        ("/models/My Model/", "my-model-dass"),
        ("pypi://d==1/x/Model-Q4_1.gguf", "model-q4-1-dass"),
        ("///", "model-dass"),
    ],
)
def test_a_registered_name_comes_from_the_models_uri(uri: str, name: str) -> None:
    assert registered_name(uri) == name


@pytest.mark.parametrize(
    ("name", "root_file"), [("params.yaml", "params.yaml"), ("dvcignore", ".dvcignore"), ("dvc/config", ".dvc/config")]
)
def test_templates_equal_the_roots_own_files(name: str, root_file: str) -> None:
    assert template(name) == (ROOT / root_file).read_text()
