"""`dass serve` and `dass ui`: the flow on a schedule, and its runs in Prefect's UI, with nothing else installed."""

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from typing import Any

import psutil

from dass.errors import InputError
from dass.files import digest_of
from flows.checks import check_start
from flows.once import check_once
from flows.overrides import parse_changes, rewrite
from flows.prefect_api import Server, prefect_server
from flows.timetable import Timetable
from flows.watch import Watch
from tasks.versioning.checkout import can_check_out, checked_out
from tasks.workspace.folder import Workspace
from tasks.workspace.lease import Lease, take_lease
from tasks.workspace.lock import schedule_file
from tasks.workspace.redaction import shown_address
from tasks.workspace.settings import Settings, load_settings

_FAREWELL_SECONDS = 2.0

logger = logging.getLogger("dass")


def serve_schedule(
    ws: Workspace,
    timetable: Timetable,
    changes: Sequence[str],
    revision: str,
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """Run the flow of `ws` whenever its timetable says so, one run at a time, until the process is stopped.

    Runs work in a checkout of the workspace; where that is not in git, in the workspace itself.

    Args:
        ws: where.
        timetable: when.
        changes: `section.key=value` for this schedule's runs; params.yaml stays as it is.
        revision: what each run checks out, as git names it then.
        tell: called when the schedule is kept, with {"event": "scheduled", "workspace", "cron", "timezone", "jitter",
            "changes", "revision": None where runs work in the workspace itself, "api", "ui", "login"}; then, and behind
            each run, with {"event": "due", "at"}; and as `flows.watch.Watch` says. The login to a server of our own is
            {"password", "chosen"}: a password made for this start and None, or None and where the user chose one. To
            a server that was there before it is None.

    Raises:
        InputError: the settings cannot be used, or the server that Prefect's settings name does not answer.
    """
    _settings_of(ws, changes)  # what is wrong here is told of the file that the person has before him
    checks_out = can_check_out(ws)
    if not checks_out and revision != "HEAD":
        raise InputError(
            f"--revision is {revision!r}, and {ws.root} has no commits. Commit it, or leave --revision out."
        )
    with checked_out(ws, revision) if checks_out else nullcontext() as checkout:
        place = ws if checkout is None else checkout.ws
        check_start(place, _settings_of(place, changes))
    with _only_schedule(ws) as lease, prefect_server(ws, schedules=True, meanwhile=_import_flow) as server:
        from prefect.schedules import Cron
        from prefect.types.entrypoint import EntrypointType

        from flows.cancellation import crash_left
        from flows.compress import compress
        from flows.served import schedule_here
        from flows.slots import free_slots

        asked = revision if checks_out else None
        schedule_here(ws, changes, timetable, asked)
        # On SIGTERM, Prefect forgets to wait for its own farewell; it stops all the same.
        warnings.filterwarnings("ignore", message=r"coroutine 'Runner\.astop' was never awaited")
        kept: dict[str, Any] = {"cron": timetable.cron, "timezone": timetable.zone, "jitter": timetable.jitter}
        kept |= {"changes": list(changes), "revision": asked}
        tell({"event": "scheduled", "workspace": str(ws.root), **kept, **_where(server)})

        def tell_of_run(told: dict[str, Any]) -> None:
            tell(told)
            if told["event"] == "ended":
                tell_when_due()

        def tell_when_due() -> None:
            at = timetable.start_after(str(ws.root), datetime.now(UTC))
            lease.note(due=at.isoformat())  # for `dass status`
            tell({"event": "due", "at": at})

        lease.note(cron=timetable.cron, timezone=timetable.zone, jitter=str(timetable.jitter))
        tell_when_due()
        name = deployment_name(ws)
        crash_left(name)
        free_slots(ws)
        with Watch(name, tell_of_run), _runs_end_with_us(ws):
            compress.serve(
                name=name,
                schedule=Cron(timetable.cron, timezone=timetable.zone),
                parameters={"workspace": str(ws.root), "changes": list(changes)},
                limit=1,
                tags=["dass"],
                entrypoint_type=EntrypointType.MODULE_PATH,
                print_starting_message=False,
            )


@contextmanager
def _only_schedule(ws: Workspace) -> Iterator[Lease]:
    """Two schedulers of one workspace would stop each other's runs. One that was taken for lost stops itself.

    Raises:
        InputError: there is one; the message names it.
    """
    ws.private.mkdir(exist_ok=True)
    lease = take_lease(schedule_file(ws), f"The schedule of {ws.root}", _stop)
    try:
        yield lease
    finally:
        lease.release()


def _stop() -> None:
    logger.warning("another process keeps the schedule now: this one ends")
    os.kill(os.getpid(), signal.SIGTERM)


def deployment_name(ws: Workspace) -> str:
    """What a workspace's schedule is called in Prefect: two workspaces on one server have two."""
    return f"scheduled-{digest_of(str(ws.root))[:8]}"


def _settings_of(ws: Workspace, changes: Sequence[str]) -> Settings:
    """What the schedule's runs work with.

    Raises:
        InputError: a change leads nowhere, is a rule of promotion, or gives settings that cannot be used.
    """
    settings = load_settings(ws.params)
    if not changes:
        return settings
    wanted = parse_changes(changes)
    check_once(wanted, "-S")
    settings = rewrite(ws.params.read_text(encoding="utf-8"), wanted, "-S")[2]
    if settings.register_.save_experiment:
        raise InputError(
            "register.save_experiment is true, and -S leaves params.yaml as it is: the experiment would hold other "
            "settings than made the result. Change params.yaml, or add -S register.save_experiment=false."
        )
    return settings


def serve_ui(ws: Workspace, tell: Callable[[dict[str, Any]], None]) -> None:
    """Show the runs of `ws` in MLflow's and Prefect's UI until the process is stopped.

    Args:
        tell: called once when they can be opened, with {"workspace", "mlflow": None where nothing was recorded yet, or
            {"ui", "experiment", "model"}, "api", "ui", "runs", "login"}, the last as for a schedule. When the servers
            are others' that is all.

    Raises:
        InputError: Prefect's settings cannot be used, or the server they name does not answer.
        TrackingError: MLflow does not answer.
    """
    from flows.mlflow_ui import mlflow_ui, told

    with mlflow_ui(ws) as pages, prefect_server(ws, schedules=True) as server:
        where = _where(server)
        tell({"workspace": str(ws.root), "mlflow": told(pages), **where, "runs": f"{where['ui']}/runs"})
        while server.login is not None or (pages is not None and pages.is_own):
            signal.pause()


def _where(server: Server) -> dict[str, Any]:
    login = server.login
    return {
        "api": shown_address(server.api),
        "ui": shown_address(server.api).removesuffix("/api"),
        "login": login and {"password": None if login.chosen else login.secret, "chosen": login.chosen},
    }


def _import_flow() -> None:
    import flows.compress  # noqa: F401  (it takes seconds)


@contextmanager
def _runs_end_with_us(ws: Workspace) -> Iterator[None]:
    """Stop the run that is working when the schedule stops, while its server still hears of it. It can be resumed."""
    from flows.cancellation import cancel_unfinished

    before = set(psutil.Process().children(recursive=True))
    try:
        yield
    finally:
        working = [child for child in psutil.Process().children(recursive=True) if child not in before]
        for child in working:
            with suppress(psutil.NoSuchProcess):
                child.terminate()
        for child in psutil.wait_procs(working, timeout=_FAREWELL_SECONDS)[1]:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        if working:
            cancel_unfinished(deployment_name(ws))
