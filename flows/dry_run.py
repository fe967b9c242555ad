"""`dass run --dry-run`: which stages would run and why, and what that would take. Changes nothing."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.once import settings_once
from flows.stages import wanted_stages
from tasks.evaluation.task_check import check_tasks
from tasks.forecast.forecast import Forecast, forecast
from tasks.pruning.fits import check_model_fits
from tasks.registry import registration
from tasks.registry.place import database
from tasks.registry.tracking import is_embedded
from tasks.versioning.experiments import check_experiments
from tasks.versioning.planned import Planned, plan_stages
from tasks.versioning.remote import remotes_of
from tasks.workspace.devices import check_device
from tasks.workspace.folder import Workspace
from tasks.workspace.progress import duration
from tasks.workspace.settings import Settings, load_settings
from tasks.workspace.tables import Fitted, table

if TYPE_CHECKING:
    from rich.table import Table

_DOES = {"runs": "would run", "restored": "would be restored from DVC's cache", "unchanged": "unchanged"}


@dataclass(frozen=True)
class DryRun:
    """What a run would do.

    Attributes:
        stages: those of dvc.yaml, up to the last one wanted.
        register: "registers", "registered" (this very result was, as `version`), or "" where the run stops before.
        version: see `register`.
        forecast: what the stages that would run, the start and registering take.
        free_disk: bytes that are free where the workspace lies.
    """

    stages: list[Planned]
    register: str
    version: str | None
    forecast: Forecast
    free_disk: int

    def as_json(self) -> dict[str, Any]:
        costs = self.forecast.stages
        return {
            "dry_run": True,
            "stages": [
                {**asdict(each), **({"cost": asdict(costs[each.stage])} if each.stage in costs else {})}
                for each in self.stages
            ],
            "register": {"outcome": self.register, "version": self.version}
            | ({"cost": asdict(costs["register"])} if "register" in costs else {}),
            "estimate": {
                "seconds": self.seconds,
                "memory": self.memory,
                "disk": self.disk,
                "free_disk": self.free_disk,
                "downloads": self.forecast.downloads,
                "not_counted": self.not_counted,
                "unknown": self.forecast.unknown,
            },
        }

    @property
    def seconds(self) -> float | None:
        """Of the whole command, downloads and `not_counted` aside; None: it cannot be told."""
        if self.forecast.unknown:
            return None
        return sum(each.seconds for each in self.forecast.stages.values() if each.seconds is not None)

    @property
    def not_counted(self) -> list[str]:
        """Stages whose seconds cannot be told before."""
        return [name for name, each in self.forecast.stages.items() if each.seconds is None]

    @property
    def memory(self) -> int | None:
        """Bytes that the process holds at most."""
        return max((each.memory for each in self.forecast.stages.values()), default=None)

    @property
    def disk(self) -> int | None:
        """Bytes that come to the disk, downloads aside."""
        return None if self.forecast.unknown else sum(each.disk for each in self.forecast.stages.values())

    def table(self) -> Fitted:
        """A row a stage, for the terminal."""
        return Fitted(self._table)

    def _table(self, width: int) -> "Table":
        from rich.markup import escape

        made = table(width, "stage", "what", "why", "estimate", title="What a run would do", right=("estimate",))
        for each in self.stages:
            made.add_row(each.stage, _DOES[each.outcome], escape("\n".join(each.why)), self._told(each.stage))
        if self.register:
            what = f"is version {self.version}" if self.version else "would register the result, unless it is known"
            made.add_row("register", what, "", self._told("register"))
        return made

    def _told(self, stage: str) -> str:
        cost = self.forecast.stages.get(stage)
        if cost is None:
            return ""
        return "not known" if cost.seconds is None else duration(cost.seconds)

    def lines(self) -> list[str]:
        """What it takes as a whole, a line each."""
        told = []
        if self.forecast.unknown:
            told.append(f"No estimate: {self.forecast.unknown}.")
        elif self.forecast.stages:
            seconds, memory, disk = self.seconds or 0.0, self.memory or 0, self.disk or 0
            more = f", and what {' and '.join(self.not_counted)} takes" if self.not_counted else ""
            seen = [each.seen for each in self.forecast.stages.values() if each.seconds is not None]
            of = "runs here before" if all(seen) else "what this machine computes in a second"
            told.append(
                f"In all about {duration(seconds)}{more}, {_size(memory)} of memory and {_size(disk)} of disk "
                f"({_size(self.free_disk)} are free). Reckoned from the model's shape and {of}."
            )
        told += [f"Fetched first, its time and size not counted: {each}" for each in self.forecast.downloads]
        if all(each.outcome == "unchanged" for each in self.stages) and self.register != "registers":
            told.append("Nothing to do.")
        return told


def dry_run(ws: Workspace, changes: Sequence[tuple[str, Any]], until: str | None = None) -> DryRun:
    """Find out what a run would do. Call inside `workspace_lock`.

    Args:
        ws: where.
        changes: settings that the run would have beside those of params.yaml.
        until: the last stage that is wanted; None: all, and the result is registered.

    Raises:
        InputError: as the run itself would before any work; MLflow, Prefect and
            remotes are not asked.
    """
    with settings_once(ws, changes, always=True) as once:
        settings = load_settings(once.params)
        check_device(settings.engine.device)
        check_model_fits(once, settings)
        check_experiments(ws, settings)
        remotes_of(ws, settings.register_.remotes)
        stages = plan_stages(once, settings)
        check_tasks(once, settings)
        wanted = wanted_stages(until)
        stages = [each for each in stages if each.stage in wanted]
        version = None if until or _is_work(stages) else _registered(once, settings)
        works = [each.stage for each in stages if each.outcome == "runs"]
        if works:
            works = [_start(), *works, *([] if until else ["register"])]
        return DryRun(
            stages,
            "" if until else "registers" if version is None else "registered",
            version,
            forecast(once, settings, works),
            shutil.disk_usage(ws.root).free,
        )


def _start() -> str:
    """The kind of start: a server of our own makes its database once."""
    is_there = "PREFECT_API_URL" in os.environ or Path(os.environ.get("PREFECT_HOME", ""), "prefect.db").exists()
    return "start" if is_there else "first start"


def _is_work(stages: Sequence[Planned]) -> bool:
    return any(each.outcome != "unchanged" for each in stages)


def _registered(ws: Workspace, settings: Settings) -> str | None:
    """The version that the workspace's result is, without making a store that is not there."""
    if is_embedded(ws) and not database(ws).exists():
        return None
    found = registration.registered(ws, settings)
    return None if found is None else found.version


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
