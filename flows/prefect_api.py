"""The Prefect server: the one PREFECT_API_URL names, or one of our own beside `dass serve`."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from dass.errors import InfrastructureError
from tasks.workspace.redaction import shown_address

_STARTUP_SECONDS = 90.0  # it migrates its database first, which took 10 s


def check_api() -> None:
    """Make sure that the server PREFECT_API_URL names is there. Without the variable there is nothing to check.

    Raises:
        InfrastructureError: it does not answer.
    """
    api = os.environ.get("PREFECT_API_URL")
    if api and not _answers(api):
        raise InfrastructureError(
            f"PREFECT_API_URL is {shown_address(api)}: no Prefect server answers there. "
            "Start it, or unset the variable."
        )


@contextmanager
def own_server() -> Iterator[str]:
    """Start a Prefect server on this machine's loopback, and stop it at the end. Its database is in PREFECT_HOME.

    Yields:
        The API's address, which is also put into PREFECT_API_URL.

    Raises:
        InfrastructureError: it did not come up.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    command = [
        sys.executable,
        "-P",
        "-m",
        "flows.prefect_api",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for us: the server must outlive our last call to it
    )
    try:
        deadline = time.monotonic() + _STARTUP_SECONDS
        while not _answers(api):
            if process.poll() is not None or time.monotonic() > deadline:
                raise InfrastructureError(f"The Prefect server did not start (status {process.poll()})")
            time.sleep(0.2)
        os.environ["PREFECT_API_URL"] = api
        yield api
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api.rstrip('/')}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def _end_with_parent() -> None:
    """On Linux: when the parent is killed, so is this process. Elsewhere a killed parent leaves its server behind."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


if __name__ == "__main__":  # the server's own process: prefect's command line, tied to the life of its parent
    _end_with_parent()
    import runpy

    runpy.run_module("prefect", run_name="__main__")
