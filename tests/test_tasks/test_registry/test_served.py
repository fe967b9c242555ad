"""What a request may ask of a version, through MLflow's own doors: `pyfunc.load_model` and `mlflow models serve`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import mlflow
import pytest
from mlflow.models import Model

from tasks.registry.registration import register
from tasks.registry.served import SIGNATURE, served_signature
from tasks.workspace.folder import Workspace
from tests.servers import free_port
from tests.workspaces import change_settings

PROVENANCE: dict[str, Any] = {"git_commit": None, "git_dirty": None, "dvc": {}, "seconds": {}}
PROMPT = "the model keeps"


def test_mlflow_writes_the_signature_as_we_do() -> None:
    assert served_signature().to_dict() == SIGNATURE


@pytest.fixture(params=["checkpoint", "masks"])
def served(request: pytest.FixtureRequest, finished: Workspace, monkeypatch: pytest.MonkeyPatch) -> str:
    """A version of each kind, and MLflow told where it is."""
    made = register(finished, change_settings(finished, register__artifact=request.param), PROVENANCE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished.root / 'mlflow.db'}")
    monkeypatch.chdir(finished.root)
    return f"models:/{made.model}/{made.version}"


def test_predict_honours_what_is_asked(served: str) -> None:
    model = mlflow.pyfunc.load_model(served)
    assert Model.load(served).signature.params is not None
    [short] = model.predict([PROMPT], params={"max_new_tokens": 4})
    [long] = model.predict([PROMPT], params={"max_new_tokens": 12})
    assert long.startswith(short)
    assert len(long) > len(short) > len(PROMPT)
    assert model.predict([PROMPT]) == model.predict([PROMPT])  # sampled only when that is asked for
    drawn = {model.predict([PROMPT], params={"do_sample": True, "temperature": 5.0})[0] for _ in range(4)}
    assert len(drawn) > 1
    with pytest.raises(mlflow.MlflowException, match="max_new_tokens"):
        model.predict([PROMPT], params={"max_new_tokens": "many"})


@pytest.mark.slow
def test_a_served_version_honours_what_is_asked(served: str, tmp_path: Path) -> None:
    port = free_port()
    where = f"http://127.0.0.1:{port}"
    command = (*("-m", "mlflow", "models", "serve", "-m", served, "--env-manager", "local"), "--port", str(port))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow starts uvicorn by its name
    process = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "PATH": path},
        stdout=(tmp_path / "log").open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        wait_for(f"{where}/ping", process, tmp_path / "log")
        answers = [ask(where, {"inputs": [PROMPT], "params": {"max_new_tokens": tokens}}) for tokens in (4, 12)]
        assert answers[1].startswith(answers[0])
        assert len(answers[1]) > len(answers[0]) > len(PROMPT)
    finally:
        process.terminate()
        process.wait(20)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            urlopen(address, timeout=5)
        except (URLError, OSError):
            time.sleep(0.5)
        else:
            return


def ask(where: str, request: dict[str, Any]) -> str:
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(f"{where}/invocations", json.dumps(request).encode(), headers), timeout=60) as answer:
        [text] = json.load(answer)["predictions"]
    return str(text)
