"""Stores that data is sent to, on this machine's loopback only: OpenSSH, and a server that speaks S3."""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tasks.workspace.folder import Workspace
from tests.servers import free_port
from tests.test_flows.conftest import Commands


@dataclass(frozen=True)
class Ssh:
    """A running OpenSSH server that lets this user in with a key.

    Attributes:
        port: where it listens.
        key: the private key's file.
        log: what it says.
        process: its process group's leader.
    """

    port: int
    key: Path
    log: Path
    process: subprocess.Popen[bytes]

    def url(self, folder: Path) -> str:
        """A folder of this machine as it is reached through the server."""
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{folder}"


@contextmanager
def ssh_server(folder: Path) -> Generator[Ssh]:
    """OpenSSH's sshd. Skips the test where it is not installed."""
    program = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("OpenSSH's server is not installed: no sshd (apt install openssh-server)")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it, and starts without it nowhere
    port = free_port()
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder / 'host'}",
        f"AuthorizedKeysFile {folder / 'authorized'}",
        f"PidFile {folder / 'pid'}",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "UsePAM no",
        "StrictModes no",
        "PermitRootLogin prohibit-password",
        "MaxStartups 100",
        "Subsystem sftp internal-sftp",
    ]
    (folder / "config").write_text("\n".join(lines) + "\n")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-D", "-e", "-f", folder / "config"], stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_for_port(port, process, folder / "log")
        yield Ssh(port, folder / "user", folder / "log", process)
    finally:
        _end(process)


@dataclass(frozen=True)
class S3:
    """A running server that speaks S3, with one bucket.

    Attributes:
        endpoint: its address.
        bucket: the bucket's name.
        environment: credentials, as every AWS client looks for them.
        process: its process group's leader.
    """

    endpoint: str
    bucket: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes]

    def objects(self) -> dict[str, int]:
        """Key -> size of everything in the bucket."""
        found = self.client().list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return {each["Key"]: each["Size"] for each in found}

    def client(self) -> Any:
        """boto3's client; boto3 makes its classes as it goes."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name=self.environment["AWS_DEFAULT_REGION"],
        )


@contextmanager
def s3_server(folder: Path) -> Generator[S3]:
    """moto's server. Skips the test where it is not installed."""
    pytest.importorskip("moto.server", reason="no server that speaks S3: pip install 'moto[s3,server]'")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_for_port(port, process, folder / "log")
        login = {
            "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        made = S3(f"http://127.0.0.1:{port}", "models", login, process)
        made.client().create_bucket(Bucket=made.bucket)
        yield made
    finally:
        _end(process)


def add_remotes(ws: Workspace, commands: Commands, ssh: Ssh, s3: S3, folder: Path) -> None:
    """DVC's remotes `host`, that folder by SSH, and `bucket`, the default. The key's file is named in config.local."""
    commands(ws, "dvc", "remote", "add", "host", ssh.url(folder))
    commands(ws, "dvc", "remote", "modify", "--local", "host", "keyfile", str(ssh.key))
    commands(ws, "dvc", "remote", "add", "--default", "bucket", f"s3://{s3.bucket}/dass")
    commands(ws, "dvc", "remote", "modify", "bucket", "endpointurl", s3.endpoint)


def _wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"a server did not start:\n{log.read_text()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
