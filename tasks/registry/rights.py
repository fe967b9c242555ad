"""What the account that MLflow's server knows us by may do there, asked before any work.

A server of `dass stack` says it itself (`flows.stack.mlflow_app`). Of another with MLflow's basic-auth the account's
permission on the model is asked: READ registers nothing, and EDIT is all that MLflow has for an alias. A server without
accounts says nothing, and everybody may do everything.
"""

import os
import re
from typing import TYPE_CHECKING, Any

from dass.errors import InputError
from tasks.registry.ledger_run import find_model
from tasks.registry.tracking import tracking, tracking_uri
from tasks.workspace.folder import Workspace
from tasks.workspace.redaction import shown_address

if TYPE_CHECKING:
    from requests import Response

PATH = "/api/2.0/dass/rights"
REGISTER, RELEASE = "register", "release"
ROLES = {REGISTER: "runner", RELEASE: "releaser"}
"""Right -> the role that gives it: what to ask for."""

_WORDS = {REGISTER: "register versions of", RELEASE: "set the alias champion of"}
_ACCOUNT = "/api/2.0/mlflow/users/current"
_PERMISSION = "/api/3.0/mlflow/users/permissions/get"
_READS_ONLY = ("READ", "USE", "NO_PERMISSIONS", "DENY")


class MissingRight(InputError):
    """This account may not do it. Nothing was changed."""


def check_right(ws: Workspace, model: str, right: str) -> None:
    """Refuse early what MLflow's server would refuse, perhaps when half is done.

    Args:
        ws: whose MLflow is asked.
        model: registered model; there may be none of that name yet.
        right: REGISTER or RELEASE.

    Raises:
        MissingRight: the account has it not; names the account, the right and what to ask for.
        TrackingError: MLflow failed.
    """
    uri = os.environ.get("MLFLOW_REGISTRY_URI") or tracking_uri(ws)
    if not re.match(r"https?:", uri):
        return
    with tracking(ws) as client:
        found = _asked_of_ours(uri, model, right)
        if found is None:
            if find_model(client, model) is None:  # whoever makes a model may register its versions
                return
            found = _asked_of_others(uri, model)
        account, lacks = found
    if lacks:
        raise MissingRight(
            f"Account {account!r} at {shown_address(uri)} may not {_WORDS[right]} {model!r} ({lacks}). Ask who "
            f"administers that server for the role {ROLES[right]!r}, or log in as an account that has it "
            "(MLFLOW_TRACKING_USERNAME). Nothing was changed."
        )


def _asked_of_ours(uri: str, model: str, right: str) -> tuple[str, str | None] | None:
    """The account, and what it lacks; None: the server is none of ours."""
    told = _json(_get(uri, PATH, model=model))
    if told is None or not isinstance(told.get("rights"), list):
        return None
    roles = ", ".join(map(str, told.get("roles", []))) or "none"
    return str(told.get("account")), None if right in told["rights"] else f"its roles: {roles}"


def _asked_of_others(uri: str, model: str) -> tuple[str, str | None]:
    user = (_json(_get(uri, _ACCOUNT)) or {}).get("user")
    if not isinstance(user, dict) or user.get("is_admin"):
        return "", None
    account = str(user.get("username"))
    asked = {"username": account, "resource_type": "registered_model", "resource_id": model}
    permission = (_json(_get(uri, _PERMISSION, **asked)) or {}).get("permission")
    return account, f"its permission there: {permission}" if permission in _READS_ONLY else None


def _get(uri: str, path: str, **asked: str) -> "Response":
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    return http_request(get_default_host_creds(uri), path, "GET", params=asked, raise_on_status=False)


def _json(answer: "Response") -> dict[str, Any] | None:
    """What a server without accounts answers is its page, or that there is nothing there."""
    try:
        told = answer.json() if answer.status_code == 200 else None
    except ValueError:
        return None
    return told if isinstance(told, dict) else None
