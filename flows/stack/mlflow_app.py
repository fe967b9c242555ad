"""What the stack's MLflow server runs: MLflow's own basic-auth, and the rules that it has no word for.

To MLflow every alias is one permission, EDIT, and whoever makes a model has MANAGE on it. Here

- `champion` and every other alias but `challenger`, a model's name, a model or version that has such an alias, and
  stages are changed only by a releaser: an account that has MANAGE on the model through a role, or an administrator;
- experiments and registered models are made only by accounts that may edit all of them.

MANAGE that MLflow gave an account because it made the model does not count. It is used as the app "dass":
`mlflow server --app-name dass`. `GET /api/2.0/dass/rights` tells whoever asks what he may do.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from flask import Flask, Response, g, jsonify, request
from mlflow.exceptions import MlflowException
from mlflow.server import app as mlflow_app
from mlflow.server import auth
from mlflow.server.auth.permissions import (
    EDIT,
    MANAGE,
    RESOURCE_TYPE_EXPERIMENT,
    RESOURCE_TYPE_REGISTERED_MODEL,
    Permission,
    get_permission,
    matches,
)
from mlflow.server.handlers import _get_model_registry_store

from tasks.registry.publishing import ALIAS as CHALLENGER
from tasks.registry.rights import PATH, REGISTER, RELEASE

_ROUTE = re.compile(r".*/(?:ajax-)?api/\d+\.\d+/mlflow/(.+)")
_OWN_ROLE = "__user_"  # MLflow's name for what was given to one account, not to a role


def create_app(app: Flask = mlflow_app) -> Any:
    """Make it for MLflow's server."""
    made = auth.create_app(app)
    auth.BEFORE_REQUEST_VALIDATORS[PATH, "GET"] = lambda: True  # it tells each account of itself only
    app.add_url_rule(PATH, view_func=_rights, methods=["GET"])
    app.before_request(_check)  # behind MLflow's own: who asks is known, and may do what MLflow has a word for
    return made


def _check() -> Response | None:
    account = g.get("mlflow_authenticated_user")
    route = request.url_rule and _ROUTE.fullmatch(request.url_rule.rule)
    if account is None or not route:
        return None
    rule = _RULES.get((request.method, route[1]))
    return None if rule is None or rule(account) else auth.make_forbidden_response()


def _rights() -> Response:
    """{"account", "roles": names, "rights": of `tasks.registry.rights`} for the model that `model` names."""
    account, model = g.mlflow_authenticated_user, request.args.get("model", "")
    roles = sorted(role.name for role in _roles(account) if not role.name.startswith(_OWN_ROLE))
    edits = _may_edit(account, model) and _may_make(account)
    rights = [right for right, has in ((REGISTER, edits), (RELEASE, _is_releaser(account, model))) if has]
    return jsonify({"account": account, "roles": roles, "rights": rights})


def _roles(account: str) -> list[Any]:
    return list(auth.store.list_user_roles(auth.store.get_user(account).id))


def _granted(account: str, resource: str, name: str, by_role_only: bool = False) -> Iterator[Permission]:
    """What an account was given on a resource."""
    for role in _roles(account):
        if by_role_only and role.name.startswith(_OWN_ROLE):
            continue
        for each in role.permissions:
            if each.resource_type == resource and matches(each.resource_pattern, resource, name):
                yield get_permission(each.permission)


def _is_admin(account: str) -> bool:
    return bool(auth.store.get_user(account).is_admin)


def _has(account: str, resource: str, name: str, level: Permission, by_role_only: bool = False) -> bool:
    given = list(_granted(account, resource, name, by_role_only))
    if any(each.denied for each in given):
        return False
    return any(each in (level, MANAGE) for each in given)


def _is_releaser(account: str, model: str) -> bool:
    return _is_admin(account) or _has(account, RESOURCE_TYPE_REGISTERED_MODEL, model, MANAGE, by_role_only=True)


def _may_edit(account: str, model: str) -> bool:
    return _is_admin(account) or _has(account, RESOURCE_TYPE_REGISTERED_MODEL, model or "*", EDIT)


def _may_make(account: str) -> bool:
    return _is_admin(account) or all(
        _has(account, resource, "*", EDIT, by_role_only=True)
        for resource in (RESOURCE_TYPE_EXPERIMENT, RESOURCE_TYPE_REGISTERED_MODEL)
    )


def _asked(name: str) -> list[Any]:
    """Every value that a request gives a parameter, wherever it may stand."""
    body = request.get_json(force=True, silent=True)
    given = request.args.getlist(name)
    if isinstance(body, dict):
        return given + ([body[name]] if name in body else [])
    return given if body is None else [*given, None]  # a body of another form is none that we judge


def _asks_releaser(account: str) -> bool:
    models = _asked("name")
    return bool(models) and all(isinstance(model, str) and _is_releaser(account, model) for model in models)


def _alias(account: str) -> bool:
    aliases = _asked("alias")
    return (bool(aliases) and all(alias == CHALLENGER for alias in aliases)) or _asks_releaser(account)


def _removes_model(account: str) -> bool:
    """A model goes away by a runner's hand only as long as no alias of a releaser's is on it."""
    models = _asked("name")
    return (len(models) == 1 and not _released(models[0])) or _asks_releaser(account)


def _removes_version(account: str) -> bool:
    """As for a model."""
    models, versions = _asked("name"), _asked("version")
    if len(models) == len(versions) == 1 and str(versions[0]).isdecimal():  # 01 is 1 to a database
        return int(versions[0]) not in _released(models[0]) or _asks_releaser(account)
    return _asks_releaser(account)


def _released(model: object) -> set[int]:
    """The versions that have an alias of a releaser's."""
    try:
        aliases = dict(_get_model_registry_store().get_registered_model(model).aliases)
    except MlflowException:  # there is none: MLflow says so itself
        return set()
    return {int(version) for alias, version in aliases.items() if alias != CHALLENGER}


_RULES: dict[tuple[str, str], Callable[[str], bool]] = {
    ("POST", "registered-models/alias"): _alias,
    ("DELETE", "registered-models/alias"): _alias,
    ("POST", "registered-models/rename"): _asks_releaser,
    ("DELETE", "registered-models/delete"): _removes_model,
    ("DELETE", "model-versions/delete"): _removes_version,
    ("POST", "model-versions/transition-stage"): _asks_releaser,
    ("POST", "registered-models/create"): _may_make,
    ("POST", "experiments/create"): _may_make,
}
