"""Who may do what on MLflow's server: three roles, accounts that have one of them, and a file with each one's login.

The roles are MLflow's own (permissions on every experiment, model, run and version). What MLflow has no permission for,
an alias by its name, the server's app adds (`flows.stack.mlflow_app`).
"""

import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dass.errors import InfrastructureError, InputError
from flows.stack.place import Place, Ports, environment_file, read_environment, write_private
from flows.stack.services import ADMIN, logins

_ALL_OF_ITS_OWN = (("run", "MANAGE"), ("logged_model", "MANAGE"), ("registered_model_version", "MANAGE"))
ROLES: dict[str, tuple[tuple[str, str], ...]] = {
    "reader": (("experiment", "READ"), ("registered_model", "READ")),
    # what a killed run left behind, the next one removes
    "runner": (("experiment", "EDIT"), ("registered_model", "EDIT"), *_ALL_OF_ITS_OWN),
    "releaser": (("experiment", "EDIT"), ("registered_model", "MANAGE"), *_ALL_OF_ITS_OWN),
}
"""Role -> what it may do with every resource of a type."""

_WORKSPACE = "default"  # MLflow's, where nobody divides its server
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Server:
    """MLflow's server, asked as its administrator.

    Attributes:
        uri: its address.
        password: the administrator's.
    """

    uri: str
    password: str

    def __call__(self, method: str, path: str, **asked: Any) -> dict[str, Any] | None:
        """Its answer; None: there is nothing of that name.

        Raises:
            InputError: it refuses.
            InfrastructureError: it fails.
        """
        import requests

        how = {"params": asked} if method == "GET" else {"json": asked}
        try:
            answer = requests.request(
                method,
                f"{self.uri}/api/{path}",
                auth=(ADMIN, self.password),
                timeout=60,
                **how,  # type: ignore[arg-type]
            )
        except requests.RequestException as error:
            raise InfrastructureError(
                f"MLflow's server at {self.uri} does not answer ({type(error).__name__})."
            ) from None
        if answer.status_code == 404:
            return None
        if answer.status_code != 200:
            kind = InputError if answer.status_code < 500 else InfrastructureError
            raise kind(
                f"MLflow's server at {self.uri} refused {path} (status {answer.status_code}): {answer.text[:300]}"
            )
        told: dict[str, Any] = answer.json() if answer.text.strip() else {}
        return told


def make_roles(server: Server) -> dict[str, int]:
    """The three roles, with what each may do and nothing more; name -> MLflow's number of it."""
    there = {
        role["name"]: role for role in (server("GET", "3.0/mlflow/roles/list", workspace=_WORKSPACE) or {})["roles"]
    }
    made = {}
    for name, grants in ROLES.items():
        role = there.get(name)
        if role is None:
            role = (server("POST", "3.0/mlflow/roles/create", workspace=_WORKSPACE, name=name) or {})["role"]
        wanted = {(resource, "*", permission) for resource, permission in grants}
        for has in role.get("permissions", []):
            grant = has["resource_type"], has["resource_pattern"], has["permission"]
            if grant in wanted:
                wanted.discard(grant)
            else:
                server("DELETE", "3.0/mlflow/roles/permissions/remove", role_permission_id=has["id"])
        for resource, pattern, permission in sorted(wanted):
            server(
                "POST",
                "3.0/mlflow/roles/permissions/add",
                role_id=role["id"],
                resource_type=resource,
                resource_pattern=pattern,
                permission=permission,
            )
        made[name] = int(role["id"])
    return made


def make_account(place: Place, host: str, ports: Ports, name: str, role: str) -> Path:
    """An account with this role and no other of the three, and the file of its login.

    Args:
        place, host, ports: of a stack that runs.
        name: of the account, there already or not.
        role: one of ROLES.

    Returns:
        The file: variables for a shell. A password that it holds already is kept.

    Raises:
        InputError: the name or role is none, or MLflow refuses.
        InfrastructureError: MLflow fails.
    """
    _check(name, role)
    to_mlflow, to_prefect = logins(place, host, ports)
    file = place.account(name)
    known = read_environment(file).get("MLFLOW_TRACKING_PASSWORD") if file.exists() else None
    password = known or secrets.token_urlsafe(24)
    server = Server(to_mlflow["MLFLOW_TRACKING_URI"], place.secret("mlflow-admin"))
    give_role(server, name, role, password, renew=known is None)
    login = {**to_mlflow, "MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}
    # Who may speak to Prefect may have the worker run something as the worker's account.
    write_private(file, environment_file(login if role == "reader" else {**login, **to_prefect}))
    return file


def give_role(server: Server, name: str, role: str, password: str, *, renew: bool = True) -> None:
    """An account with this role and no other of the three, made when there is none.

    Args:
        server: MLflow's, with the app of `flows.stack.mlflow_app`.
        name, role: as for `make_account`.
        password: of an account that is made.
        renew: give it to one that is there, too.

    Raises:
        InputError: the name or role is none, or MLflow refuses.
        InfrastructureError: MLflow fails.
    """
    _check(name, role)
    roles = make_roles(server)
    if server("GET", "2.0/mlflow/users/get", username=name) is None:
        server("POST", "2.0/mlflow/users/create", username=name, password=password)
    elif renew:
        server("PATCH", "2.0/mlflow/users/update-password", username=name, password=password)
    has = {each["name"] for each in (server("GET", "3.0/mlflow/users/roles/list", username=name) or {})["roles"]}
    for other in has & set(roles) - {role}:
        server("DELETE", "3.0/mlflow/roles/unassign", username=name, role_id=roles[other])
    if role not in has:
        server("POST", "3.0/mlflow/roles/assign", username=name, role_id=roles[role])


def _check(name: str, role: str) -> None:
    if role not in ROLES:
        raise InputError(f"--role is {role!r}: expected one of {', '.join(ROLES)}.")
    if not _NAME.fullmatch(name) or name == ADMIN:
        raise InputError(f"The name is {name!r}: expected letters, digits, dots and dashes, and not {ADMIN!r}.")
