"""Who works on a sweep's points: threads of this process, or a Dask cluster, here or at an address."""

import asyncio
from contextlib import ExitStack
from typing import Any

from dass.errors import InputError
from tasks.workspace.settings import Sweep

_ANSWER_SECONDS = 10


def check_runner(asked: Sweep) -> None:
    """Ask whether what `sweep.runner` needs is there.

    Raises:
        InputError: prefect-dask is not installed, no scheduler answers at the address, or it has no worker.
    """
    if asked.runner == "threads":
        for name in ("address", "resources"):
            if getattr(asked, name):
                raise InputError(
                    f"sweep.{name} is set and sweep.runner is threads: it is a cluster's. Use runner: dask."
                )
        return
    try:
        import prefect_dask  # noqa: F401
    except ImportError:
        raise InputError("sweep.runner is dask, and prefect-dask is not installed: pip install 'dass[dask]'") from None
    if asked.address is None:
        return
    try:
        workers = asyncio.run(asyncio.wait_for(_workers_at(asked.address), _ANSWER_SECONDS))
    except (OSError, ValueError, TimeoutError):
        raise InputError(
            f"sweep.address is {asked.address}: no Dask scheduler answers there within {_ANSWER_SECONDS} s. Start it "
            "(dask scheduler), correct the address, or leave it out for a cluster on this machine."
        ) from None
    if not workers:
        raise InputError(f"sweep.address is {asked.address}: the scheduler has no worker. Start one: dask worker.")


async def _workers_at(address: str) -> int:
    """How many workers a scheduler has. Asked without a client, which goes on asking when it was told to stop."""
    from distributed import Security
    from distributed.core import rpc

    async with rpc(address, connection_args=Security().get_connection_args("client")) as scheduler:
        return len((await scheduler.identity())["workers"])


def runner_of(asked: Sweep) -> Any:
    """Prefect's task runner for points. A cluster of our own speaks TLS on the loopback, with keys made anew."""
    if asked.runner == "threads":
        from prefect.task_runners import ThreadPoolTaskRunner

        return ThreadPoolTaskRunner(max_workers=asked.parallel)
    from prefect_dask import DaskTaskRunner

    if asked.address is not None:
        return DaskTaskRunner(address=asked.address)
    cluster = {
        "n_workers": asked.parallel,
        "threads_per_worker": 1,
        "security": True,
        "dashboard_address": None,
        "resources": asked.resources or None,
    }
    return DaskTaskRunner(cluster_class="distributed.LocalCluster", cluster_kwargs=cluster)


def set_aside(asked: Sweep) -> ExitStack:
    """While it is entered, submitted points ask the scheduler for `sweep.resources`."""
    held = ExitStack()
    if asked.resources:
        import dask

        held.enter_context(dask.annotate(resources=asked.resources))
    return held
