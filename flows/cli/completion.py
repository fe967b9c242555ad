"""What the Tab key offers beyond commands and options: settings, and the versions of a workspace's own store.

Whatever is in the way, the shell is offered nothing, and told nothing.
"""

from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import typer


def settings_keys() -> list[tuple[str, str]]:
    """Keys as `-S` takes them, with what they mean."""
    from tasks.workspace.reference import groups

    return [(each.key, each.meaning) for group in groups() for each in group.settings if "." in each.key]


def settings_sections() -> list[tuple[str, str]]:
    """What `dass settings` takes: sections, recipes and keys, with what they mean."""
    from tasks.workspace.reference import RECIPE_GROUP, groups

    sections = [(group.name, group.meaning) for group in groups()]
    return [*sections, (RECIPE_GROUP, "Settings to begin with."), *settings_keys()]


def versions(context: typer.Context) -> list[tuple[str, str]]:
    """Aliases and numbers of the registered versions, newest first. A server is not asked: Tab would wait for it."""
    with suppress(Exception):
        return _versions(Path(context.params.get("workspace") or "."))
    return []


def _versions(folder: Path) -> list[tuple[str, str]]:
    from flows.environment import configure
    from tasks.registry.embedded import EmbeddedClient, is_plain
    from tasks.registry.place import database
    from tasks.registry.tracking import is_embedded, tracking_uri
    from tasks.workspace.folder import Workspace
    from tasks.workspace.settings import load_settings

    ws = Workspace.at(folder)
    configure(ws.root)
    if not is_embedded(ws) or not is_plain(database(ws)):
        return []
    model = load_settings(ws.params).register_.model
    client = EmbeddedClient(database(ws), tracking_uri(ws), _no_mlflow)
    numbers = [int(each.version) for each in client.search_model_versions(f"name = '{model}'")]
    aliases = {alias: int(number) for alias, number in client.get_registered_model(model).aliases.items()}
    offered = [(alias, f"version {number}") for alias, number in sorted(aliases.items())]
    for number in sorted(numbers, reverse=True):
        named = ", ".join(alias for alias, at in aliases.items() if at == number)
        offered.append((str(number), named or "no alias"))
    return offered


def _no_mlflow() -> NoReturn:
    raise LookupError("MLflow takes seconds to load: longer than Tab may take")
