"""Data on real stores: OpenSSH and a server that speaks S3, both here. A second clone has nothing else."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.workspace.folder import Workspace
from tests.remote_servers import S3, Ssh, add_remotes, s3_server, ssh_server
from tests.servers import mlflow_server
from tests.test_flows.conftest import Commands

pytestmark = pytest.mark.slow
AUTHOR = {f"GIT_{who}_{what}": "me@home" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ssh]:
    with ssh_server(tmp_path_factory.mktemp("ssh")) as made:
        yield made


@pytest.fixture
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as made:
        yield made


@pytest.fixture
def ws(new_workspace: Callable[[], Workspace], commands: Commands) -> Workspace:
    """A workspace in git in which nothing has run."""
    made = new_workspace()
    for line in ("init -q", "add --all", "commit -q -m begun"):
        in_git(made, *line.split())
    return made


def in_git(ws: Workspace, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=ws.root, check=True, capture_output=True, env={**os.environ, **AUTHOR})


@pytest.mark.parametrize("remote", ["host", "bucket"])
def test_a_second_clone_pulls_verifies_and_loads_a_version_that_was_pushed(
    remote: str, ws: Workspace, commands: Commands, ssh: Ssh, s3: S3, tmp_path: Path
) -> None:
    add_remotes(ws, commands, ssh, s3, tmp_path / "host")
    in_git(ws, "add", "--all")
    in_git(ws, "commit", "-q", "-m", "remotes")
    (tmp_path / "mlflow").mkdir()
    with mlflow_server(f"sqlite:///{tmp_path}/mlflow/db", tmp_path / "mlflow") as uri:
        known = {**s3.environment, "MLFLOW_TRACKING_URI": uri}
        answer = json.loads(
            commands(ws, "dass", "run", "--json", "-S", "register.remotes=[host, bucket]", status=0, **known).stdout
        )
        in_git(ws, "add", "--all")
        in_git(ws, "commit", "-q", "-m", "half")
        assert s3.objects()

        clone = Workspace(tmp_path / "clone")
        subprocess.run(["git", "clone", "-q", ws.root, clone.root], check=True)
        shutil.rmtree(ws.root)  # what the clone gets comes from the remotes and the server
        commands(clone, "dvc", "remote", "modify", "--local", "host", "keyfile", str(ssh.key))
        commands(clone, "dvc", "remote", "default", "--local", remote)
        commands(clone, "dass", "verify", answer["version"], "--replay", status=0, **known)
        commands(clone, "dvc", "pull", status=0, **known)
        again = json.loads(commands(clone, "dass", "run", "--json", status=0, **known).stdout)
        assert again["version"] == answer["version"]
        assert set(again["stages"].values()) == {"unchanged"}
        assert parameters_of(clone, commands, answer, known) > 0


def test_another_machine_needs_the_server_a_remote_and_the_trusted_keys(
    new_workspace: Callable[[], Workspace], ws: Workspace, commands: Commands, ssh: Ssh, s3: S3, tmp_path: Path
) -> None:
    """No clone, a signing key that nobody trusts, nothing that its user has seen before."""
    add_remotes(ws, commands, ssh, s3, tmp_path / "host")
    commands(ws, "dass", "keys", "init")
    (tmp_path / "mlflow").mkdir()
    with mlflow_server(f"sqlite:///{tmp_path}/mlflow/db", tmp_path / "mlflow") as uri:
        known = {**s3.environment, "MLFLOW_TRACKING_URI": uri}
        answer = json.loads(commands(ws, "dass", "run", "--json", status=0, **known).stdout)
        there = new_workspace()
        (there.root / "dass.keys").write_bytes((ws.root / "dass.keys").read_bytes())
        (there.root / ".dvc" / "config").write_bytes((ws.root / ".dvc" / "config").read_bytes())
        shutil.rmtree(ws.root)
        known |= {"XDG_CONFIG_HOME": str(tmp_path / "config"), "DASS_SIGNING_KEY": str(tmp_path / "key.pem")}
        verified = commands(there, "dass", "verify", answer["version"], "--replay", status=0, **known)
        assert "believed" not in verified.stderr  # dass.keys says how the ledger begins
        assert parameters_of(there, commands, answer, known) > 0


def test_versions_whose_files_mlflow_keeps_on_s3(ws: Workspace, commands: Commands, s3: S3, tmp_path: Path) -> None:
    """Behind its server, which alone has the login: a version is registered, proved and loaded like any other."""
    (tmp_path / "mlflow").mkdir()
    login = {**s3.environment, "MLFLOW_S3_ENDPOINT_URL": s3.endpoint}
    with mlflow_server(
        f"sqlite:///{tmp_path}/mlflow/db", tmp_path / "mlflow", login, files=f"s3://{s3.bucket}/mlflow"
    ) as uri:
        known = {"MLFLOW_TRACKING_URI": uri}
        answer = json.loads(commands(ws, "dass", "run", "--json", status=0, **known).stdout)
        kept = s3.objects()
        assert any(key.endswith("/dass/manifest.json") for key in kept)
        commands(ws, "dass", "verify", answer["version"], "--replay", status=0, **known)
        assert parameters_of(ws, commands, answer, known) > 0
        commands(ws, "dass", "gc", "--yes", status=0, **known)
        assert s3.objects().keys() >= {key for key in kept if "/models/" in key}
        commands(ws, "dass", "verify", answer["version"], status=0, **known)


def parameters_of(ws: Workspace, commands: Commands, answer: dict[str, Any], known: dict[str, str]) -> int:
    """Of the version as `dass.load` gives it in a process of its own."""
    loads = "import dass, sys; print(sum(each.numel() for each in dass.load(sys.argv[1]).parameters()))"
    loaded = subprocess.run(
        [sys.executable, "-c", loads, f"models:/{answer['model']}/{answer['version']}"],
        cwd=ws.root,
        env={**commands.environment, **known},
        capture_output=True,
        text=True,
    )
    assert loaded.returncode == 0, loaded.stderr
    return int(loaded.stdout.split()[-1])


@pytest.mark.faults("a DVC remote is gone")
def test_a_remote_that_is_gone_is_told_before_any_work(
    ws: Workspace, commands: Commands, ssh: Ssh, s3: S3, tmp_path: Path
) -> None:
    add_remotes(ws, commands, ssh, s3, tmp_path / "host")
    s3.process.kill()
    s3.process.wait()
    done = commands(ws, "dass", "run", status=3, **s3.environment)
    assert "bucket, s3://models/dass does not answer" in done.stderr
    assert not ws.base.exists()
    assert all(secret not in done.stderr + done.stdout for secret in s3.environment.values() if len(secret) > 15)


@pytest.mark.faults("credentials expire or change")
def test_credentials_that_expired_stop_a_run_before_its_work(
    ws: Workspace, commands: Commands, ssh: Ssh, s3: S3, tmp_path: Path
) -> None:
    add_remotes(ws, commands, ssh, s3, tmp_path / "host")
    commands(ws, "dvc", "remote", "modify", "--local", "host", "keyfile", str(ssh.key.with_name("host")))
    done = commands(ws, "dass", "run", "-S", "register.remotes=[host]", status=3)
    assert "host, ssh://" in done.stderr
    assert "Permission denied" in done.stderr
    assert not ws.base.exists()


@pytest.mark.faults("a DVC remote is gone")
def test_a_push_that_was_cut_off_goes_on_and_registers_once(
    ws: Workspace, commands: Commands, ssh: Ssh, s3: S3, tmp_path: Path
) -> None:
    add_remotes(ws, commands, ssh, s3, tmp_path / "host")
    commands(ws, "dass", "run", "--until", "plots", status=0, **s3.environment)
    s3.client().delete_bucket(Bucket=s3.bucket)
    (tmp_path / "host").mkdir()
    failed = commands(ws, "dass", "run", "-S", "register.remotes=[host, bucket]", status=3, **s3.environment)
    assert "bucket" in failed.stderr
    s3.client().create_bucket(Bucket=s3.bucket)
    answer = json.loads(commands(ws, "dass", "run", "--json", status=0, **s3.environment).stdout)
    assert answer["version"] == "1"
    assert set(answer["stages"].values()) == {"unchanged"}
