"""`dass serve`: the flow on a schedule, with nothing else installed."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import psutil

from dass.errors import InputError
from flows.prefect_api import check_api, own_server
from tasks.workspace.folder import Workspace
from tasks.workspace.redaction import shown_address
from tasks.workspace.settings import load_settings

_FAREWELL_SECONDS = 15.0


def serve_schedule(ws: Workspace, cron: str, tell: Callable[[dict[str, Any]], None]) -> None:
    """Run the flow in `ws` whenever `cron` (UTC) says so, one run at a time, until the process is stopped.

    Args:
        tell: called once when the schedule is kept, with {"workspace", "cron", "api", "ui"}.

    Raises:
        InputError: the cron expression or the settings cannot be used.
        InfrastructureError: PREFECT_API_URL does not answer.
    """
    load_settings(ws.params)
    ws.private.mkdir(exist_ok=True)  # PREFECT_HOME is in there
    _check_cron(cron)
    check_api()
    given = os.environ.get("PREFECT_API_URL")
    with nullcontext(given) if given else own_server() as api:
        from prefect.types.entrypoint import EntrypointType

        from flows.compress import compress

        # On SIGTERM, Prefect forgets to wait for its own farewell; it stops all the same.
        warnings.filterwarnings("ignore", message=r"coroutine 'Runner\.astop' was never awaited")
        tell(
            {
                "workspace": str(ws.root),
                "cron": cron,
                "api": shown_address(api),
                "ui": shown_address(api).removesuffix("/api"),
            }
        )
        with _runs_end_with_us():
            compress.serve(
                name="scheduled",
                cron=cron,
                parameters={"workspace": str(ws.root)},
                limit=1,
                entrypoint_type=EntrypointType.MODULE_PATH,
                print_starting_message=False,
            )


@contextmanager
def _runs_end_with_us() -> Iterator[None]:
    """Stop the run that is working when the schedule stops, while its server still hears of it. It can be resumed."""
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


def _check_cron(cron: str) -> None:
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    try:
        CronSchedule(cron=cron)
    except ValidationError:
        raise InputError(
            f'--cron "{cron}" is not a schedule: expected minute hour day month weekday, for example "0 2 * * *"'
        ) from None
