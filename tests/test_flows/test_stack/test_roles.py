"""The three roles on the stack's real server: what it refuses itself, and what the commands say before any work."""

import json
from typing import Any

import pytest
import requests

from tests.test_flows.test_stack.conftest import RunningStack, answer

pytestmark = [pytest.mark.slow, pytest.mark.postgres]

MODEL = "tiny-dass"
MLFLOW, AJAX = "api/2.0/mlflow", "ajax-api/2.0/mlflow"
RELEASED = {"challenger": "1", "champion": "1"}
CHAMPION = {"name": MODEL, "alias": "champion", "version": "1"}


@pytest.fixture(scope="module")
def registered(stack: RunningStack) -> RunningStack:
    """With a version that the runner registered."""
    made = answer(stack.as_account("runner")(stack.ws, "dass", "run", "--json"))
    assert (made["model"], made["version"]) == (MODEL, "1")
    return stack


def ask(stack: RunningStack, account: str, method: str, path: str, **how: Any) -> requests.Response:
    login = stack.login(account)
    auth = login["MLFLOW_TRACKING_USERNAME"], login["MLFLOW_TRACKING_PASSWORD"]
    return requests.request(method, f"{login['MLFLOW_TRACKING_URI']}/{path}", auth=auth, timeout=60, **how)


def state(stack: RunningStack) -> tuple[dict[str, str], int]:
    """Which version has which alias, and how many entries the ledger has, asked past `dass`."""
    model = ask(stack, "reader", "GET", f"{MLFLOW}/registered-models/get", params={"name": MODEL}).json()
    (ledger,) = [tag["value"] for tag in model["registered_model"]["tags"] if tag["key"] == "ledger"]
    run = ask(stack, "reader", "GET", f"{MLFLOW}/runs/get", params={"run_id": ledger}).json()["run"]
    aliases = {each["alias"]: each["version"] for each in model["registered_model"]["aliases"]}
    return aliases, len(run["data"]["params"])


def test_a_reader_sees_and_proves_and_is_told_what_he_may_not_before_any_work(registered: RunningStack) -> None:
    reader, ws, before = registered.as_account("reader"), registered.ws, state(registered)
    proved = reader(ws, "dass", "verify", "1")
    assert f"{MODEL} version 1: proved" in proved.stdout
    assert "this account only reads" in proved.stderr
    assert "ratio" in reader(ws, "dass", "show", "challenger", "--json").stdout
    done = reader(ws, "dass", "run", "-S", "prune.sparsity=0.6", status=2)
    assert done.stderr.count("\n") == 1
    assert f"Account 'reader' at {registered.login('reader')['MLFLOW_TRACKING_URI']} may not register" in done.stderr
    assert "the role 'runner'" in done.stderr
    assert "sparsity: 0.5" in ws.params.read_text()
    assert state(registered) == before


def test_only_a_releaser_promotes_and_the_refusal_changes_nothing(registered: RunningStack) -> None:
    before = state(registered)
    for account in ("reader", "runner"):
        for command in (("promote", "1", "--force", "--reason", "x"), ("rollback", "--reason", "x")):
            done = registered.as_account(account)(registered.ws, "dass", *command, status=2, PREFECT_API_URL="")
            told = [line for line in done.stderr.splitlines() if line.startswith("dass:")]
            assert len(told) == 1
            assert f"Account {account!r}" in told[0]
            assert "may not set the alias champion" in told[0]
            assert "the role 'releaser'" in told[0]
    assert state(registered) == before
    assert before[0] == {"challenger": "1"}


@pytest.fixture(scope="module")
def released(registered: RunningStack) -> RunningStack:
    """With a champion, which the releaser promoted."""
    registered.as_account("releaser")(registered.ws, "dass", "promote", "1", "--force", "--reason", "tiny")
    assert state(registered)[0] == RELEASED
    return registered


@pytest.mark.parametrize("account", ["reader", "runner"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", f"{MLFLOW}/registered-models/alias", CHAMPION),
        ("POST", f"{AJAX}/registered-models/alias", CHAMPION),
        ("POST", f"{MLFLOW}/registered-models/alias", json.dumps(CHAMPION)),  # JSON in a JSON string
        ("DELETE", f"{MLFLOW}/registered-models/alias", {"name": MODEL, "alias": "champion"}),
        ("POST", f"{MLFLOW}/registered-models/rename", {"name": MODEL, "new_name": "mine"}),
        ("DELETE", f"{MLFLOW}/registered-models/delete", {"name": MODEL, "version": "9"}),
        ("DELETE", f"{MLFLOW}/model-versions/delete", {"name": MODEL, "version": "01"}),
        (
            "POST",
            f"{MLFLOW}/model-versions/transition-stage",
            {"name": MODEL, "version": "1", "stage": "Production", "archive_existing_versions": False},
        ),
        ("POST", f"{MLFLOW}/users/create", {"username": "eve", "password": "long-enough-for-it"}),
        ("POST", "api/3.0/mlflow/roles/assign", {"username": "runner", "role_id": 3}),
    ],
)
def test_the_server_itself_refuses_what_a_releaser_or_administrator_does(
    released: RunningStack, account: str, method: str, path: str, body: Any
) -> None:
    assert ask(released, account, method, path, json=body).status_code in (400, 403)
    assert state(released)[0] == RELEASED


def test_whoever_made_the_model_may_not_release_it_and_cannot_give_himself_the_right(registered: RunningStack) -> None:
    named = {"name": "of-the-runner"}
    version, alias = {**named, "source": "s3://nowhere/x"}, {**named, "alias": "champion", "version": "1"}
    grant = {"resource_type": "registered_model", "resource_id": "of-the-runner", "permission": "MANAGE"}

    def status(account: str, method: str, path: str, body: dict[str, str]) -> int:
        return ask(registered, account, method, path, json=body).status_code

    def give_kim(role: str) -> None:
        registered.commands(registered.ws, "dass", "stack", "account", "kim", "--role", role)

    assert status("reader", "POST", f"{MLFLOW}/registered-models/create", named) == 403
    assert status("reader", "POST", f"{MLFLOW}/experiments/create", named) == 403
    assert status("runner", "POST", f"{MLFLOW}/registered-models/create", named) == 200
    assert status("runner", "POST", f"{MLFLOW}/model-versions/create", version) == 200
    give_kim("runner")
    # MLflow lets who made a model share it.
    assert status("runner", "POST", "api/3.0/mlflow/users/permissions/grant", {"username": "kim", **grant}) == 200
    for account in ("runner", "kim"):
        assert status(account, "POST", f"{MLFLOW}/registered-models/alias", alias) == 403
        assert status(account, "POST", f"{MLFLOW}/registered-models/alias", {**alias, "alias": "challenger"}) == 200
    give_kim("releaser")
    assert status("kim", "POST", f"{MLFLOW}/registered-models/alias", alias) == 200
    give_kim("reader")
    assert "PREFECT_API_AUTH_STRING" not in registered.login("kim")
    assert status("kim", "DELETE", f"{MLFLOW}/registered-models/alias", alias) == 403
    assert status("runner", "DELETE", f"{MLFLOW}/registered-models/delete", named) == 403


def test_nobody_enters_without_a_login(stack: RunningStack) -> None:
    login = stack.login("runner")
    mlflow, prefect = login["MLFLOW_TRACKING_URI"], login["PREFECT_API_URL"]
    for page in (
        f"{mlflow}/{MLFLOW}/experiments/search?max_results=1",
        f"{mlflow}/api/2.0/dass/rights",
        f"{prefect}/flows/filter",
    ):
        assert requests.request("POST" if "flows" in page else "GET", page, json={}, timeout=60).status_code == 401
