"""`dass doctor`: every finding, and how it is mended."""

import json
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from dvc.config import Config

from dass.errors import InfrastructureError
from flows import doctor
from flows.cli.main import run_command
from flows.doctor import Finding, finding_row
from flows.environment import configure
from flows.initialise import make_workspace
from flows.overrides import change_settings
from tasks.registry.key_file import key_file, make_key
from tasks.registry.ledger import NotAllowed
from tasks.versioning.remote import ask_remote
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import load_settings
from tests.printing import printed

NOWHERE = "http://127.0.0.1:9"
LOOKED_AT = [
    *("dass", "workspace", "settings", "device", "disk", "git", "pipeline", "DVC remote", "MLflow", "Prefect"),
    "signing key",
]


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("doctor") / "ws")


@pytest.fixture
def ws(_made: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace that nothing ran in yet, outside git, and a signing key that is not made yet."""
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "DASS_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("DASS_SIGNING_KEY", str(tmp_path / "keys" / "key.pem"))
    ws = Workspace.at(shutil.copytree(_made.root, tmp_path / "ws"))
    configure(ws.root)
    return ws


def found(ws: Workspace, what: str) -> Finding:
    return next(each for each in doctor.doctor(ws) if each.what == what)


def told(finding: Finding) -> str:
    assert finding.state != "ok", finding
    return f"{finding.state}: {finding.found} -> {finding.mend}"


def git(ws: Workspace, *arguments: str) -> None:
    who = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    subprocess.run(["git", *who, *arguments], cwd=ws.root, check=True, capture_output=True)


def test_a_new_workspace_has_nothing_to_mend(ws: Workspace) -> None:
    findings = list(doctor.doctor(ws))
    assert [each.what for each in findings] == LOOKED_AT
    assert [each.what for each in findings if each.state == "mend"] == []
    assert f"torch {torch.__version__}" in findings[3].found
    assert not key_file().exists()
    assert not (ws.root / "mlflow.db").exists()
    assert "the first run makes" in findings[-1].found


def test_outside_a_workspace_the_machine_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    findings = list(doctor.doctor(None))
    assert [each.what for each in findings] == ["dass", "workspace", "device", "disk", "signing key"]
    assert "dass init FOLDER" in told(findings[1])


def test_wrong_settings_are_told_and_the_rest_is_looked_at_all_the_same(ws: Workspace) -> None:
    ws.params.write_text(ws.params.read_text().replace("method: dass", "method: best", 1))
    findings = list(doctor.doctor(ws))
    assert [each.what for each in findings] == LOOKED_AT
    assert "mend: params.yaml: prune.method is 'best': expected" in told(findings[2])
    assert findings[2].mend == "Correct it: dass settings"


def test_a_pipeline_that_dvc_cannot_read(ws: Workspace) -> None:
    assert found(ws, "pipeline").state == "ok"
    pipeline = ws.root / "dvc.yaml"
    pipeline.write_text(pipeline.read_text() + "more: [http://x]\n")
    assert "mend: dvc.yaml line" in told(found(ws, "pipeline"))
    pipeline.write_text("stages: {prune: nothing}\n")
    assert "mend: DVC cannot use" in told(found(ws, "pipeline"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that is missed here")
def test_a_device_that_is_not_there(ws: Workspace) -> None:
    ws.params.write_text(ws.params.read_text().replace("device: auto", "device: cuda:7", 1))
    assert told(found(ws, "device")) == (
        "mend: engine.device is 'cuda:7', and torch sees 0 CUDA devices -> Use auto or cpu"
    )


def test_a_disk_with_too_little_room(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.disk(ws.root).state == "ok"
    free = shutil.disk_usage(ws.root).free
    assert "note: " in told(doctor.disk(ws.root, wanted=free * 2))
    monkeypatch.setattr(doctor, "LEAST_BYTES", free * 2)
    assert "mend: " in told(doctor.disk(ws.root))


def test_git(ws: Workspace) -> None:
    assert "note: ws is not in git" in told(found(ws, "git"))
    change_settings(ws, ["promote.clean_git=true"])
    assert "mend: ws is not in git" in told(found(ws, "git"))
    git(ws, "init", "-q")
    assert "mend: ws has no commit yet" in told(found(ws, "git"))
    git(ws, "add", ".")
    git(ws, "commit", "-qm", "all")
    assert found(ws, "git").state == "ok"
    change_settings(ws, ["prune.sparsity=0.6"])
    assert "mend: at commit" in told(found(ws, "git"))
    change_settings(ws, ["promote.clean_git=false"])
    assert "note: at commit" in told(found(ws, "git"))


def test_an_experiment_needs_git(ws: Workspace) -> None:
    change_settings(ws, ["register.save_experiment=true"])
    assert "mend: ws is not in git" in told(found(ws, "git"))


def remote(ws: Workspace, url: str) -> None:
    with Config(str(ws.root / ".dvc")).edit("repo") as config:
        config["remote"] = {"store": {"url": url}}
        config["core"]["remote"] = "store"


def test_a_dvc_remote(ws: Workspace, tmp_path: Path) -> None:
    assert "note: a run pushes nowhere" in told(found(ws, "DVC remote"))
    remote(ws, str(tmp_path / "remote"))
    assert found(ws, "DVC remote").found == f"store, {tmp_path / 'remote'} answers, and holds nothing yet"
    (tmp_path / "remote").mkdir()
    assert found(ws, "DVC remote").found == f"store, {tmp_path / 'remote'} answers"
    remote(ws, f"{NOWHERE}/data")
    assert f"mend: store, {NOWHERE}/data does not answer" in told(found(ws, "DVC remote"))
    change_settings(ws, ["register.remotes=[]"])
    assert "note: a run pushes nowhere" in told(found(ws, "DVC remote"))
    change_settings(ws, ["register.remotes=[other]"])
    assert "mend: register.remotes names 'other', and DVC knows store" in told(found(ws, "DVC remote"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        remote(ws, f"http://127.0.0.1:{silent.getsockname()[1]}/data")
        with pytest.raises(InfrastructureError, match="store, .*/data does not answer: no complete answer within 1 s"):
            ask_remote(ws, "store", 1.0)


def test_mlflow(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (ws.root / "mlflow.db").write_bytes(b"no database at all" * 100)
    assert "mend: " in told(found(ws, "MLflow"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    line = told(found(ws, "MLflow"))
    assert f"mend: MLFLOW_TRACKING_URI is {NOWHERE} and cannot be used" in line
    assert "-> Start that server" in line


def test_prefect(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"{NOWHERE}/api")
    line = told(found(ws, "Prefect"))
    assert f"mend: PREFECT_API_URL is {NOWHERE}/api (environment variable PREFECT_API_URL): no Prefect server" in line
    assert "-> Start it, correct the address" in line


def test_a_signing_key(ws: Workspace) -> None:
    make_key(key_file())
    assert found(ws, "signing key").state == "ok"
    key_file().chmod(0o644)
    assert f"-> Run: chmod 600 {key_file()}" in told(found(ws, "signing key"))


def test_a_key_that_may_not_register(finished: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASS_SIGNING_KEY", str(tmp_path / "keys" / "stranger.pem"))
    make_key(key_file())
    settings = load_settings(finished.params)
    with pytest.raises(NotAllowed):
        doctor.signing_key(finished, settings)
    assert "Give your public key" in told(found(finished, "signing key"))


def test_the_command_tells_with_its_status(
    ws: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_command(["doctor", "-w", str(ws.root), "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert [each["what"] for each in findings] == LOOKED_AT
    assert set(findings[0]) == {"what", "state", "found", "mend"}
    monkeypatch.setenv("PREFECT_API_URL", f"{NOWHERE}/api")
    assert run_command(["doctor", "-w", str(ws.root)]) == 1
    said = capsys.readouterr().out
    assert "MEND" in said
    assert "mend: Start it, correct the address" in " ".join(said.split())


@pytest.mark.parametrize("width", [60, 80])
def test_findings_are_readable(width: int) -> None:
    finding = Finding("signing key", "mend", "the key [bold] has mode 0644 " * 4, "chmod 600 key.pem")
    text = printed(finding_row(finding), width)
    assert "[bold]" in text
    assert any(line.strip() == "mend: chmod 600 key.pem" for line in text.splitlines())
