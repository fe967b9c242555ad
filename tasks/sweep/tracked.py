"""A sweep in MLflow: one parent run, and below it a run for each finished point with its masks. Each is there once.

Runs are found by their tags: a sweep that was killed between any two calls neither loses one nor makes it twice.
What it had begun and not ended is deleted and made again. While it runs the parent is an attempt
(`tasks.registry.attempts`): stopped, it is KILLED or FAILED and has the reason as a tag, by the next command where the
process was killed. A sweep that goes on does so in the same run.
"""

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dass.files import canonical_json
from tasks.registry.attempts import ENDED, Attempt, begin, forget
from tasks.registry.attempts import TAG as ATTEMPT
from tasks.registry.clearing import clear_attempt, clear_left, status_of, store_named
from tasks.registry.experiment import experiment_of
from tasks.registry.run_record import log_in_batches, metric_name, param_text, run_name, source_tags
from tasks.registry.tracking import tracking
from tasks.sweep.left import KEY, PARENT, POINT, SWEEP
from tasks.sweep.records import Record, Records
from tasks.sweep.space import Point, Space, shown
from tasks.workspace.flat import flat
from tasks.workspace.folder import Workspace
from tasks.workspace.redaction import redacted
from tasks.workspace.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger("dass")


class TrackedSweep:
    """One sweep's runs.

    Attributes:
        parent: the id of the run above the points'.
        store: which MLflow has them, as `tasks.registry.clearing.store_named`.
    """

    def __init__(self, ws: Workspace, settings: Settings, name: str, space: Space) -> None:
        """Find the parent's run, or make it.

        Raises:
            InputError, TrackingError: as MLflow refuses, or fails.
        """
        self._ws, self._name, self._records = ws, name, Records(ws)
        self.experiment_name = settings.register_.experiment
        self.store = store_named(ws)
        self._model = settings.register_.model
        self._attempt: Attempt | None = None
        with tracking(ws) as client:
            clear_left(ws, client)
            self._experiment = experiment_of(ws, client, self.experiment_name)
            runs = self._runs(client)
            self._points = {run.data.tags[POINT]: run for run in runs if run.data.tags[POINT] != PARENT}
            found = [run for run in runs if run.data.tags[POINT] == PARENT]
            self.parent = str((found[0] if found else self._make_parent(client, space)).info.run_id)
            if not found or found[0].info.status != "FINISHED":
                self._begin(client)

    def stop(self, error: BaseException, done: int) -> None:
        """The sweep was stopped: its parent is KILLED where it was interrupted, else FAILED. What MLflow does not hear
        now, it hears from the next command.

        Args:
            error: what stopped it.
            done: how many points are there.
        """
        if self._attempt is None:
            return
        status = status_of(error)
        why = "interrupted" if status == "KILLED" else redacted(" ".join(str(error).split()))[:_LONGEST]
        try:
            with tracking(self._ws) as client:
                client.set_tag(self.parent, ENDED, f"{why}; {done} points are there, the same command goes on")
                clear_attempt(self._ws, client, self._attempt, status)
        except Exception as failed:  # the note stays for the next command
            logger.debug("the sweep's run in MLflow is ended by the next command: %s", failed)

    def note(self, point: Point, record: Record) -> None:
        """A point's run: settings, figures and masks; of one that failed, why. One that is there already stays."""
        known = self._points.get(str(point.number))
        if (
            known is not None
            and known.info.status in ("FINISHED", "FAILED")
            and known.data.tags.get(KEY) == _state(record)
        ):
            return
        with tracking(self._ws) as client:
            self._begin(client)
            if known is not None:
                client.delete_run(known.info.run_id)
            self._points[str(point.number)] = self._log(client, point, record)

    def end(self, figures: dict[str, float], files: Iterable[Path], *, failed: bool) -> None:
        """Give the parent what the sweep came to, unless it has it: then no point's run was made."""
        if self._attempt is None:
            return
        with tracking(self._ws) as client:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            metrics = [Metric(name, value, now, 0) for name, value in figures.items()]
            log_in_batches(client, self.parent, metrics=metrics)
            for file in files:
                client.log_artifact(self.parent, str(file))
            client.set_terminated(self.parent, "FAILED" if failed else "FINISHED")
        forget(self._ws, self._attempt)
        self._attempt = None

    def _runs(self, client: "MlflowClient") -> list["Run"]:
        found: list[Run] = []
        token = None
        while True:
            page = client.search_runs([self._experiment], f"tags.{SWEEP} = '{self._name}'", page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _begin(self, client: "MlflowClient") -> None:
        """The parent runs, unless it does already."""
        if self._attempt is not None:
            return
        self._attempt = begin(self._ws, self.store, self._experiment, self._model)
        client.set_tag(self.parent, ATTEMPT, self._attempt.id)
        client.update_run(self.parent, "RUNNING")
        if ENDED in client.get_run(self.parent).data.tags:
            client.delete_tag(self.parent, ENDED)

    def _make_parent(self, client: "MlflowClient", space: Space) -> "Run":
        from mlflow.entities import Param

        asked = {**space.fixed, **{key: repr(values) for key, values in space.choices.items()}}
        tags = {**_source_tags(), SWEEP: self._name, POINT: PARENT}
        run = client.create_run(self._experiment, tags=tags, run_name=f"sweep {self._name}")
        params = [Param(metric_name(f"sweep.{key}"), param_text(value)[:_LONGEST]) for key, value in asked.items()]
        log_in_batches(client, run.info.run_id, params=params)
        return run

    def _log(self, client: "MlflowClient", point: Point, record: Record) -> "Run":
        from mlflow.entities import Metric, Param
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        tags = {
            **_source_tags(),
            SWEEP: self._name,
            POINT: str(point.number),
            KEY: _state(record),
            MLFLOW_PARENT_RUN_ID: self.parent,
            "fingerprint": record.fingerprint,
            "masks": record.masks,
            **({"failed": record.failed} if record.failed else {}),
        }
        told = ", ".join(f"{key.rpartition('.')[2]}={shown(value)}" for key, value in point.values.items())
        name = f"{run_name(point.settings)}: point {point.number}, {told}"
        run = client.create_run(self._experiment, tags=tags, run_name=name[:_LONGEST])
        run_id = run.info.run_id
        whole = flat(point.settings.model_dump(mode="json", by_alias=True, exclude={"register_", "promote"}))
        params = [Param(metric_name(key), param_text(value)[:_LONGEST]) for key, value in whole.items()]
        seconds = {f"seconds.{what}": value for what, value in (record.seconds or {}).items()}
        figures = {**(record.figures or {}), **seconds}
        metrics = [Metric(metric_name(key), float(value), run.info.start_time, 0) for key, value in figures.items()]
        log_in_batches(client, run_id, params=params, metrics=metrics)
        if record.failed is None:
            client.log_artifacts(run_id, str(self._records.masks(record.fingerprint)), "masks")
        client.set_terminated(run_id, "FAILED" if record.failed else "FINISHED")
        return client.get_run(run_id)


_LONGEST = 500


def _source_tags() -> dict[str, Any]:
    tags = source_tags({})
    return {name: "dass sweep" if value == "dass run" else value for name, value in tags.items()}


def _state(record: Record) -> str:
    """What a run tells: with another result, or another reason, it is told anew."""
    return record.key if record.failed is None else f"{record.key} {canonical_json(record.failed)[:200]}"
