"""One run of the pipeline, without Prefect: what it holds, how a stage is done or skipped, and whether all is done."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dass.errors import InfrastructureError
from dass.files import read_json
from flows.checks import check_start
from flows.once import settings_once
from flows.overrides import parse_changes
from flows.served import place_of
from flows.stages import STAGES, wanted_stages
from flows.summary import Stopped, Summary
from tasks.evaluation.same_text import tell_same_text
from tasks.forecast import rates
from tasks.forecast.effort import effort_of
from tasks.forecast.shape import shape_of
from tasks.pruning.fits import check_base_fits
from tasks.registry import registration
from tasks.registry.attempts import unfinished
from tasks.registry.clearing import clear_left, store_named
from tasks.registry.live import LiveRun
from tasks.registry.tracking import reading, tracking
from tasks.report.file import is_drawn
from tasks.versioning.experiments import check_experiments, save_experiment
from tasks.versioning.inputs import Started
from tasks.versioning.provenance import provenance
from tasks.versioning.push import is_pushed, push
from tasks.versioning.remote import remotes_of
from tasks.versioning.stages import Outcome, run_if_changed, start_run, unchanged_stages
from tasks.workspace.folder import Workspace
from tasks.workspace.gpus import gpus_held
from tasks.workspace.lock import check_held, clear_workspace, lease_of, workspace_lock
from tasks.workspace.progress import working
from tasks.workspace.settings import Settings

logger = logging.getLogger("dass")


class Run:
    """One run of the flow: the settings it started with, and what became of each stage.

    Not a dataclass: Prefect looks into those that a task is given, and copies them.

    Attributes:
        until: the stage that the run stops behind; None: it registers the result.
    """

    def __init__(self, ws: Workspace, started: Started, until: str | None = None) -> None:
        self.ws = ws
        self.started = started
        self.until = until
        self.outcomes: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.live = LiveRun(ws, started.settings)

    @property
    def settings(self) -> Settings:
        return self.started.settings

    def stage(self, name: str, work: Callable[[], object] | None = None) -> None:
        """Do a stage, unless DVC has its result."""
        check_held(self.ws)
        begin = time.perf_counter()
        stage = STAGES[name]
        outcome = run_if_changed(self.ws, name, work or (lambda: stage.work(self.ws, self.settings)), self.started)
        self._note(name, outcome, begin)
        self._tell(name)
        if outcome == "ran":
            self._remember(name, self.seconds[name])

    def _remember(self, name: str, seconds: float) -> None:
        """Keep what a stage took, for the forecasts of `dass run --dry-run`."""
        if name == "prune":  # a run that was stopped has done some layers before
            from tasks.pruning.stages import seconds_per_layer

            seconds = max(seconds, sum(seconds_per_layer(self.ws) or []))
        shape = shape_of(self.ws, self.settings)
        effort = None if shape is None else effort_of(name, shape, self.settings)
        if effort is not None:
            rates.note(rates.kind_of(name, self.settings), effort, seconds)

    def is_unchanged(self) -> bool:
        """Whether DVC has the result of every stage that is wanted. Nothing is told yet: there may be other work."""
        wanted = wanted_stages(self.until)
        for name in unchanged_stages(self.ws, wanted, self.started):
            self._note(name, "unchanged", time.perf_counter())
        return list(self.outcomes) == wanted

    def _note(self, name: str, outcome: Outcome, begin: float) -> None:
        self.outcomes[name] = outcome
        self.seconds[name] = round(time.perf_counter() - begin, 3)

    def tell(self) -> None:
        """What became of each stage, a line each."""
        for name in self.outcomes:
            self._tell(name)

    def _tell(self, name: str) -> None:
        outcome = self.outcomes[name]
        logger.info("%s: %s", name, f"done in {self.seconds[name]:.1f} s" if outcome == "ran" else outcome)

    def stopped(self) -> Stopped:
        """What the person sees at the end of a run that stops before."""
        assert self.until is not None
        return Stopped(self.until, self.outcomes, self.seconds)

    def push(self) -> None:
        """Send what the stages made to the DVC remotes that the settings name."""
        push(self.ws, self.remotes)

    @property
    def remotes(self) -> dict[str, str]:
        """Name -> address of the DVC remotes that data and results are pushed to."""
        return remotes_of(self.ws, self.settings.register_.remotes)

    def register(self, flow_run: dict[str, str] | None = None) -> registration.Registration:
        """Register the result; the same result is registered once.

        Args:
            flow_run: Prefect's run, as `flows.links.flow_run_facts`; None: there is none.
        """
        begin = time.perf_counter()
        origin = provenance(self.ws, self.seconds)
        origin["remotes"] = self.remotes
        if flow_run is not None:
            origin["flow_run"] = flow_run
        if experiment := self.save_experiment():
            origin["experiment"] = experiment
        with working("Registering"):
            registered = registration.register(self.ws, self.settings, origin, self.live)
        if registered.created:
            self._remember("register", time.perf_counter() - begin)
        return registered

    def save_experiment(self) -> dict[str, str] | None:
        """Save the workspace as a DVC experiment, {"name", "commit"}, where the settings ask for it."""
        if not self.settings.register_.save_experiment:
            return None
        name = registration.experiment_name(self.ws, self.settings)
        return {"name": name, "commit": save_experiment(self.ws, name)}

    def report(self, registered: registration.Registration) -> None:
        """Draw the page of the registered version."""
        from tasks.report.draw import draw_of_run  # here: torch takes seconds

        drawn = draw_of_run(self.ws, registered, self.settings.promote)
        logger.info("report: %s", drawn.file)

    def summary(self, registered: registration.Registration) -> Summary:
        """What the person sees at the end."""
        evaluation, tasks = (read_json(self.ws.metrics / name) for name in ("evaluation.json", "tasks.json"))
        manifest = read_json(self.ws.masks / "manifest.json")
        aliases = aliases_of(self.ws, registered.model, registered.version)
        return Summary.of(evaluation, tasks, manifest, registered, aliases, self.outcomes, self.seconds)


def aliases_of(ws: Workspace, model: str, version: str) -> list[str]:
    """What a registered version is called."""
    with reading(ws) as client:
        return sorted(client.get_model_version(model, version).aliases)


@contextmanager
def run_of(workspace: str, changes: Sequence[str] = (), until: str | None = None) -> Iterator[Run]:
    """Hold the workspace and its GPUs, and read everything once; what can be refused is refused before any work."""
    with place_of(workspace, changes) as place, run_in(place, changes, until) as run:
        yield run


@contextmanager
def run_in(
    place: Workspace, changes: Sequence[str] = (), until: str | None = None, what: str = "dass run"
) -> Iterator[Run]:
    """The same where the place is known: a workspace, or the checkout of one. `what` is told to who wants its GPU."""
    with _held(place, changes, until) as run:
        check_start(run.ws, run.settings)
        tell_same_text(run.ws, run.settings)
        with gpus_held(run.ws, run.settings.engine, what):
            yield run


@contextmanager
def _held(place: Workspace, changes: Sequence[str], until: str | None) -> Iterator[Run]:
    """The same, when nobody knows yet whether there is work that could be refused."""
    wanted_stages(until)
    with workspace_lock(place):
        clear_workspace(place)
        clear_lost(place)
        with settings_once(place, parse_changes(changes, "--with")) as ws:
            started = start_run(ws)
            run = Run(ws, started, until)
            with run.live:
                yield run


def clear_lost(ws: Workspace) -> None:
    """Where the run before was lost, have MLflow say so: it would show it at work until this one registers."""
    lease = lease_of(ws)
    if lease is None or lease.lost is None or not unfinished(ws, store_named(ws)):
        return
    try:
        with tracking(ws) as client:
            clear_left(ws, client)
    except InfrastructureError as error:
        logger.warning("MLflow shows the run before as running until it answers again: %s", error)


def finished(workspace: str, changes: Sequence[str] = (), until: str | None = None) -> Summary | Stopped | None:
    """What a run would end with that finds nothing left to do.

    Args:
        workspace, changes, until: as `flows.compress.compress`.

    Returns:
        The summary; None: there is work, and what it needs is there. Only then Prefect is needed, which takes seconds
        to start.

    Raises:
        InputError: as the run itself.
    """
    with place_of(workspace, changes) as place, _held(place, changes, until) as run:
        found = _finished(run)
        if found is None:
            check_start(run.ws, run.settings)
        else:
            tell_same_text(run.ws, run.settings)
        return found


def _finished(run: Run) -> Summary | Stopped | None:
    if not run.is_unchanged():
        return None
    if run.until is not None:
        run.tell()
        return run.stopped()
    check_base_fits(run.ws, run.settings)
    registered = registration.registered(run.ws, run.settings)
    if registered is None or not is_drawn(run.ws, registered):
        return None
    check_experiments(run.ws, run.settings)
    if not is_pushed(run.ws, run.remotes):
        return None
    run.tell()
    run.save_experiment()
    return run.summary(registered)
