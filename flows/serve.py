"""`dass serve` and `dass ui`: the flow on a schedule, and its runs in Prefect's UI, with nothing else installed."""

import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import psutil

from dass.errors import InputError
from flows.checks import check_start
from flows.prefect_api import Server, prefect_server
from tasks.workspace.folder import Workspace
from tasks.workspace.redaction import shown_address
from tasks.workspace.settings import load_settings

_FAREWELL_SECONDS = 2.0
_FIELDS = 5


def serve_schedule(ws: Workspace, cron: str, tell: Callable[[dict[str, Any]], None]) -> None:
    """Run the flow in `ws` whenever `cron` (UTC) says so, one run at a time, until the process is stopped.

    Args:
        tell: called once when the schedule is kept, with {"workspace", "cron", "api", "ui", "login"}. The login to a
            server of our own is {"password", "chosen"}: a password made for this start and None, or None and where the
            user chose one. To a server that was there before it is None.

    Raises:
        InputError: the cron expression or the settings cannot be used, or the server they name does not answer.
    """
    check_cron(cron)
    check_start(ws, load_settings(ws.params))
    with prefect_server(ws, schedules=True, meanwhile=_import_flow) as server:
        from prefect.types.entrypoint import EntrypointType

        from flows.compress import compress
        from flows.served import schedule_here

        schedule_here(ws)
        # On SIGTERM, Prefect forgets to wait for its own farewell; it stops all the same.
        warnings.filterwarnings("ignore", message=r"coroutine 'Runner\.astop' was never awaited")
        tell({"workspace": str(ws.root), "cron": cron, **_where(server)})
        with _runs_end_with_us(ws):
            compress.serve(
                name="scheduled",
                cron=cron,
                parameters={"workspace": str(ws.root)},
                limit=1,
                entrypoint_type=EntrypointType.MODULE_PATH,
                print_starting_message=False,
            )


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
            cancel_unfinished(str(ws.root))


def check_cron(cron: str) -> None:
    """Refuse what is no schedule of five fields, and one that never fires.

    Raises:
        InputError: it is one of these.
    """
    from prefect._vendor.croniter.croniter import CroniterBadDateError, croniter
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    expected = 'expected minute hour day month weekday, for example "0 2 * * *" for every night at two, in UTC'
    if len(cron.split()) != _FIELDS:
        raise InputError(f'--cron "{cron}" is not a schedule: {expected}')
    try:
        CronSchedule(cron=cron)
        croniter(cron, datetime.now(UTC)).get_next(datetime)
    except ValidationError:
        raise InputError(f'--cron "{cron}" is not a schedule: {expected}') from None
    except CroniterBadDateError:
        raise InputError(f'--cron "{cron}" never fires: there is no such day. {expected.capitalize()}') from None
