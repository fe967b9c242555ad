"""Reading metrics/tasks.json: the entries of single tasks, and those of groups that have a mean of their own."""

from collections.abc import Mapping
from typing import Any


def named_entries(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """What metrics/tasks.json holds, a group in place of its tasks: how a short table tells it."""
    groups: dict[str, Any] = tasks.get("groups", {})
    within = {member for group in groups.values() for member in group["tasks"]}
    return {**groups, **{name: entry for name, entry in tasks["tasks"].items() if name not in within}}


def all_entries(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Everything metrics/tasks.json holds, groups first."""
    return {**tasks.get("groups", {}), **tasks["tasks"]}
