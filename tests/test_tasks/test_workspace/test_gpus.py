"""One run at a time on a GPU, by a real flock across processes. Which GPUs there are is the one thing pretended."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from dass.errors import InputError
from tasks.workspace import gpus
from tasks.workspace.folder import Workspace
from tasks.workspace.gpus import FOLDER, WAIT, gpus_held, gpus_of, wait_allowed
from tasks.workspace.settings import Engine
from tests.beside import beside

ROOT = Path(__file__).parents[3]
ONE, TWO = "GPU-8f2a", "GPU-c3d4"
COMPUTES = """
import sys
from pathlib import Path
from tasks.workspace import gpus
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Engine
gpus.gpus_of = lambda engine: dict.fromkeys(sys.argv[2:], "cuda:0")
with gpus.gpus_held(Workspace(Path(sys.argv[1])), Engine(device="cuda"), "dass run"):
    print("computes", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.delenv(WAIT, raising=False)
    return tmp_path


def here(monkeypatch: pytest.MonkeyPatch, *uuids: str) -> None:
    """A run of this process computes on these."""
    monkeypatch.setattr(gpus, "gpus_of", lambda engine: dict.fromkeys(uuids, "cuda:0"))


@contextmanager
def held() -> Iterator[None]:
    with gpus_held(Workspace(Path("/mine")), Engine(device="cuda"), "dass run"):
        yield


def elsewhere(*uuids: str, **env: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """Another process that computes on them, until it is told to stop."""
    return beside(COMPUTES, "/theirs", *uuids, says="computes", **env)


def test_a_gpu_that_is_taken_is_refused_in_a_line_that_names_its_holder_until_that_one_dies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here(monkeypatch, ONE)
    with elsewhere(ONE, PREFECT__FLOW_RUN_ID="0f1e") as process:
        told = rf"GPU {ONE} \(cuda:0\) is held by process {process.pid} \(dass run, flow run 0f1e\) in /theirs, since "
        with pytest.raises(InputError, match=told) as refused, held():
            pass
        assert "\n" not in str(refused.value)
        process.kill()
        process.wait()
        with held():
            pass


def test_one_gpu_is_taken_and_the_other_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with elsewhere(ONE):
        here(monkeypatch, TWO)
        with held():
            pass
        here(monkeypatch, TWO, ONE)
        with pytest.raises(InputError, match=ONE), held():
            pass
    with elsewhere(TWO):  # which the run that was refused has given back
        pass


def test_a_run_that_may_wait_says_so_and_goes_on_when_it_is_free(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here(monkeypatch, ONE)
    monkeypatch.setenv(WAIT, "60")
    with elsewhere(ONE) as process:
        threading.Timer(0.7, process.kill).start()
        began = time.monotonic()
        with held():
            assert 0.5 < time.monotonic() - began < 30
    (told,) = [record.message for record in caplog.records]
    assert re.search(rf"GPU {ONE} .* is held by process {process.pid} .*: waiting for it, up to 60 s", told)


def test_waiting_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, ONE)
    monkeypatch.setenv(WAIT, "1")
    with elsewhere(ONE), pytest.raises(InputError, match=r"after 1 s\. Wait for it, or stop it"), held():
        pass
    monkeypatch.setenv(WAIT, "soon")
    with pytest.raises(InputError, match="DASS_GPU_WAIT is 'soon': expected whole seconds"):
        wait_allowed()


def test_who_holds_a_gpu_may_take_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, ONE)
    with held():
        with held():
            pass
        with pytest.raises(AssertionError), elsewhere(ONE):
            pass


def test_what_another_user_left_or_wrote_is_taken_and_told_without_its_escapes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(monkeypatch, ONE)
    with elsewhere(ONE):
        (folder / f"dass-gpu-{ONE}").write_text("a\x1b[31m\nb" + "x" * 10_000)
        with pytest.raises(InputError, match=r"is held by a \[31m bx+\. Wait") as refused, held():
            pass
        assert len(str(refused.value)) < 700
    with held():
        assert (folder / f"dass-gpu-{ONE}").stat().st_mode & 0o777 == 0o666


def test_a_link_is_not_followed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, ONE)
    precious = folder / "precious"
    precious.write_text("mine")
    (folder / f"dass-gpu-{ONE}").symlink_to(precious)
    with pytest.raises(InputError, match=rf"cannot be written .* Name another folder: {FOLDER}=FOLDER"), held():
        pass
    assert precious.read_text() == "mine"


def test_a_cpu_is_shared(folder: Path) -> None:
    with gpus_held(Workspace(folder), Engine(device="cpu"), "dass run"):
        assert list(folder.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_a_card_auto_takes_none_and_torch_is_not_asked() -> None:
    code = (
        "import sys; from tasks.workspace.gpus import gpus_of; from tasks.workspace.settings import Engine\n"
        "assert gpus_of(Engine(device='auto')) == {}; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert gpus_of(Engine(device="auto", processes=4)) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_card_is_known_by_its_uuid() -> None:
    (known,) = gpus_of(Engine(device="cuda:0"))
    assert len(known) > 16
    assert list(gpus_of(Engine(device="cuda"))) == [known]
