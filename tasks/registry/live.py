"""An MLflow run that shows work while it goes on: the machine's load, layers as they are pruned, losses as they fall.

It is an attempt like one of `register` (`tasks.registry.attempts`): noted in the workspace before MLflow hears of it,
so that the next run clears it when this process is killed. Registration goes on with it, so that a result has one run,
which is as old as the work. What it shows is never believed. When MLflow falls silent the work goes on without it.
"""

import logging
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dass.errors import InfrastructureError
from tasks.registry.attempts import TAG as ATTEMPT
from tasks.registry.attempts import Attempt, begin, forget
from tasks.registry.clearing import clear_attempt, clear_left, status_of, store_named
from tasks.registry.experiment import experiment_of
from tasks.registry.run_record import layer_metrics, log_in_batches, run_name, source_tags
from tasks.registry.tracking import TrackingRefusal, tracking, tracking_uri
from tasks.workspace.folder import Workspace
from tasks.workspace.patience import answer_seconds
from tasks.workspace.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    from dass.engine.layer_report import LayerReport

_EVERY_SECONDS = 5.0
_SAMPLE_SECONDS, _SAMPLES = 10, 3  # of the machine's load: a point every half minute

logger = logging.getLogger("dass")


@dataclass(frozen=True)
class Shown:
    """A run that registration goes on with.

    Attributes:
        attempt: its note.
        run_id: its id.
        metrics: name and step of every metric that it shows.
    """

    attempt: Attempt
    run_id: str
    metrics: frozenset[tuple[str, int]]


class LiveRun:
    """The run of one workspace's work. Nothing reaches MLflow before `begin`, which only work that takes long calls;
    it is as old as this object.

    As a context it ends what registration did not take: FAILED, or KILLED when it was interrupted.

    Attributes:
        attempt: the run's note; None: no run was begun, or registration has taken it.
    """

    def __init__(self, workspace: Workspace, settings: Settings) -> None:
        self._ws, self._settings = workspace, settings
        self.attempt: Attempt | None = None
        self._run_id = ""
        self._made_at = time.time()
        self._waiting: list[Metric] = []
        self._sent_at = 0.0
        self._monitor: SystemMetricsMonitor | None = None
        self._is_silent = False
        self._sent: set[tuple[str, int]] = set()

    def __enter__(self) -> "LiveRun":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        self._rest()
        if self.attempt is None:
            return
        try:
            with tracking(self._ws) as client:
                clear_attempt(self._ws, client, self.attempt, "FINISHED" if error is None else status_of(error))
        except Exception as failed:  # the note stays for the next run
            logger.debug("the run in MLflow is ended by the next run: %s", failed)

    def begin(self, flow_run: dict[str, str] | None = None) -> None:
        """Begin the run in MLflow, unless it was begun.

        Args:
            flow_run: as in the provenance that `register` takes.

        Raises:
            InputError: MLflow refuses, or the experiment cannot be used. Better now than when all is done.
        """
        if self.attempt is not None or self._is_silent:
            return
        try:
            with tracking(self._ws) as client:
                clear_left(self._ws, client)
                experiment = experiment_of(self._ws, client, self._settings.register_.experiment)
                model = self._settings.register_.model
                self.attempt = attempt = begin(self._ws, store_named(self._ws), experiment, model)
                prefect = {f"prefect.flow_run_{what}": value for what, value in (flow_run or {}).items()}
                tags = {**source_tags({}), **prefect, ATTEMPT: attempt.id}
                made = client.create_run(
                    experiment, int(self._made_at * 1000), tags=tags, run_name=run_name(self._settings)
                )
                self._run_id = str(made.info.run_id)
                self._watch_machine()
        except TrackingRefusal:
            raise
        except InfrastructureError as error:
            self._go_silent(error)

    def note_layer(self, report: "LayerReport") -> None:
        """Show a layer that was pruned."""
        self._note({**layer_metrics(asdict(report)), "layer.seconds": report.seconds}, report.layer)

    def note_step(self, entry: dict[str, Any]) -> None:
        """Show a step of recovery, from its entry in the history."""
        values = {f"recover.step.{key}": value for key, value in entry.items() if key != "step"}
        self._note(values, entry["step"])

    def take(self) -> Shown | None:
        """Give the run to registration, which ends it; None: none was begun."""
        self._rest()
        attempt = self.attempt
        if attempt is None or not self._run_id:
            return None
        self.attempt = None
        return Shown(attempt, self._run_id, frozenset(self._sent))

    def drop(self, client: "MlflowClient") -> None:
        """Remove the run: its result was registered before, and that version has one."""
        self._rest()
        if self.attempt is None:
            return
        if self._run_id:
            client.delete_run(self._run_id)
        forget(self._ws, self.attempt)
        self.attempt = None

    def _note(self, values: dict[str, float], step: int) -> None:
        if not self._run_id or self._is_silent:
            return
        from mlflow.entities import Metric

        now = int(datetime.now(UTC).timestamp() * 1000)
        self._waiting += [Metric(name, float(value), now, step) for name, value in values.items()]
        if time.monotonic() - self._sent_at >= _EVERY_SECONDS:
            self._send()

    def _send(self) -> None:
        if not self._waiting or self._is_silent:
            return
        try:
            with tracking(self._ws) as client:
                log_in_batches(client, self._run_id, metrics=self._waiting)
        except InfrastructureError as error:  # a refusal too: what is shown is no reason to stop
            self._go_silent(error)
            return
        self._sent |= {(metric.key, metric.step) for metric in self._waiting}
        self._waiting = []
        self._sent_at = time.monotonic()

    def _go_silent(self, error: Exception) -> None:
        self._is_silent = True
        logger.warning(f"MLflow shows nothing more of this run until it is registered: {error}")

    def _watch_machine(self) -> None:
        """MLflow's own monitor, in a thread of its own."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)  # its news would go between our lines
        uri = tracking_uri(self._ws)
        self._monitor = SystemMetricsMonitor(self._run_id, _SAMPLE_SECONDS, _SAMPLES, tracking_uri=uri)
        self._monitor.start()

    def _rest(self) -> None:
        """Send what waits, and let the monitor end; it may be waiting for a server that says nothing."""
        self._send()
        if self._monitor is not None:
            ending = threading.Thread(target=self._monitor.finish, daemon=True)
            ending.start()
            ending.join(0.0 if self._is_silent else answer_seconds())
            self._monitor = None
