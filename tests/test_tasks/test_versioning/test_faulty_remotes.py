"""DVC remotes on S3 and SSH that are cut off, fall silent, are slow, keep half of a file, or take a login no longer.

A version is registered behind `push` only, so each must end it with one message, lose nothing, and have the next one go
on until the remote gives everything back.
"""

import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from dvc.repo import Repo

from dass.errors import InfrastructureError
from dass.files import complete_folder
from tasks.versioning.push import is_pushed, push
from tasks.versioning.remote import check_remotes, remotes_of
from tasks.versioning.stages import run_if_changed, start_run
from tasks.workspace.folder import Workspace
from tests.links import Link, link_to
from tests.remote_servers import S3, Ssh, s3_server, ssh_server
from tests.test_tasks.test_versioning.test_push import PARAMS, PIPELINE

pytestmark = pytest.mark.slow

_FILES, _SIZE = 4, 200_000
_LARGE = 8_000_000  # more than fits into the buffers of a connection on this machine
_ASKED = 250_000  # bytes: more than a file and what is said before it, less than all of them


@dataclass(frozen=True)
class Remote:
    """The default remote of a workspace, and the line to it.

    Attributes:
        ws: the workspace; one stage has run, and nothing was pushed.
        link: the line.
        halve: leaves half of the largest file that the remote holds.
        expire, renew: have it refuse the login from now on, and take it again.
    """

    ws: Workspace
    link: Link
    halve: Callable[[], None]
    expire: Callable[[], None]
    renew: Callable[[], None]

    def push(self) -> None:
        push(self.ws, remotes_of(self.ws, None))

    def fails(self, told: str = "") -> None:
        """A push ends with one message, and nothing counts as pushed."""
        message = r"DVC's remote store \(.*\) did not take the data: " + told
        with pytest.raises(InfrastructureError, match=message) as caught:
            self.push()
        assert "\n" not in str(caught.value)
        assert "all that was made is kept" in str(caught.value)
        assert not is_pushed(self.ws, remotes_of(self.ws, None))

    def goes_on(self) -> None:
        """The fault is over: the next push ends well, and the remote gives back what a cache has lost."""
        made = self.ws.root / "made" / "first"
        before = {path.name: path.read_bytes() for path in made.iterdir()}
        self.push()
        assert is_pushed(self.ws, remotes_of(self.ws, None))
        shutil.rmtree(self.ws.root / ".dvc" / "cache")
        shutil.rmtree(self.ws.root / "made")
        with Repo(str(self.ws.root)) as repo:
            repo.pull()
        assert {path.name: path.read_bytes() for path in made.iterdir()} == before


@pytest.fixture(params=[("s3", _SIZE), ("ssh", _SIZE)], ids=["s3", "ssh"])
def remote(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    kind, size = request.param
    root = tmp_path / "ws"
    root.mkdir()
    shutil.copy(PARAMS, root / "params.yaml")
    (root / "dvc.yaml").write_text(PIPELINE)
    Repo.init(str(root), no_scm=True).close()
    ws = Workspace.at(root)

    def work() -> None:
        with complete_folder(root / "made" / "first") as folder:
            for number in range(_FILES):
                (folder / f"{number}.bin").write_bytes(random.Random(number).randbytes(size + number))

    assert run_if_changed(ws, "first", work, start_run(ws)) == "ran"
    with {"s3": _on_s3, "ssh": _on_ssh}[kind](ws, tmp_path, monkeypatch) as made:
        yield made


@contextmanager
def _on_s3(ws: Workspace, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Remote]:
    with s3_server(folder / "s3") as server, link_to(int(server.endpoint.rpartition(":")[2])) as link:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        _configure(ws, url=f"s3://{server.bucket}/dass", endpointurl=f"http://127.0.0.1:{link.port}")

        def let_in(requests_without: str) -> None:
            page = f"{server.endpoint}/moto-api/reset-auth"
            requests.post(page, data=requests_without, timeout=30).raise_for_status()

        yield Remote(ws, link, lambda: _halve_object(server), lambda: let_in("0"), lambda: let_in("inf"))


@contextmanager
def _on_ssh(ws: Workspace, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Remote]:
    with ssh_server(folder / "sshd") as server, link_to(server.port) as link:
        through = Ssh(link.port, server.key, server.log, server.process)
        _configure(ws, url=through.url(folder / "store"), keyfile=str(server.key), timeout=5)
        known = folder / "sshd" / "authorized"
        key = known.read_text()
        expire, renew = (lambda: _write(known, "")), (lambda: _write(known, key))
        yield Remote(ws, link, lambda: _halve_file(folder / "store"), expire, renew)


def _configure(ws: Workspace, **remote: object) -> None:
    with Repo(str(ws.root)) as repo, repo.config.edit("repo") as config:
        config["remote"] = {"store": remote}
        config["core"]["remote"] = "store"


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _halve_object(server: S3) -> None:
    key, size = max(server.objects().items(), key=lambda each: each[1])
    body = server.client().get_object(Bucket=server.bucket, Key=key)["Body"].read()
    server.client().put_object(Bucket=server.bucket, Key=key, Body=body[: size // 2])


def _halve_file(store: Path) -> None:
    arrived = [path for path in store.rglob("*") if re.fullmatch(r"[0-9a-f]{30}(\.dir)?", path.name)]
    path = max(arrived, key=lambda each: each.stat().st_size)
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.faults("a DVC remote is cut off in the middle of a file")
def test_a_remote_that_is_cut_off_gets_the_rest_later(remote: Remote) -> None:
    remote.link.then(_ASKED, remote.link.cut)
    remote.fails()
    with pytest.raises(InfrastructureError, match=r"store, .* does not answer"):
        check_remotes(remote.ws, None)
    remote.link.mend()
    remote.goes_on()


@pytest.mark.faults("a DVC remote hangs up while layers are pruned")
def test_a_connection_that_broke_behind_the_first_question_is_not_used_again(remote: Remote) -> None:
    check_remotes(remote.ws, None)
    remote.link.cut()
    remote.link.mend()
    remote.goes_on()


@pytest.mark.faults("a DVC remote keeps half of a file")
def test_half_of_a_file_is_not_taken_for_the_whole(remote: Remote) -> None:
    remote.push()
    remote.halve()
    (remote.ws.private / "pushed.json").unlink()
    remote.goes_on()


@pytest.mark.faults("a DVC remote falls silent")
def test_a_remote_that_answers_no_more_is_not_waited_for_without_end(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASS_TIMEOUT", "1")
    remote.link.fall_silent()
    remote.fails()
    remote.link.mend()
    monkeypatch.delenv("DASS_TIMEOUT")
    remote.goes_on()


@pytest.mark.faults("a DVC remote accepts a file and never reads it")
@pytest.mark.parametrize("remote", [("s3", _LARGE), ("ssh", _LARGE)], indirect=True, ids=["s3", "ssh"])
def test_a_remote_that_reads_no_more_is_not_sent_to_without_end(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASS_TIMEOUT", "2")
    remote.link.then(_ASKED, remote.link.read_no_more)
    began = time.monotonic()
    remote.fails(r"no byte has moved for 2 s \(DASS_TIMEOUT is 2\)")
    assert time.monotonic() - began < 60
    remote.link.mend()
    monkeypatch.delenv("DASS_TIMEOUT")
    remote.goes_on()


@pytest.mark.faults("a DVC remote is slow")
def test_a_remote_that_is_slow_gets_everything(remote: Remote) -> None:
    remote.link.rate = 400_000.0
    remote.push()
    remote.link.rate = None
    remote.goes_on()


@pytest.mark.faults("credentials expire or change")
@pytest.mark.parametrize("remote", [("s3", _SIZE)], indirect=True)  # SSH asks for a login once a connection
def test_a_login_that_expires_in_a_push_is_named(remote: Remote) -> None:
    remote.link.then(_ASKED, remote.expire)
    remote.fails()
    remote.renew()
    remote.goes_on()
