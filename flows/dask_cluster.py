"""A Dask cluster that works on a sweep's points."""

import asyncio
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any

from dass.errors import InputError
from tasks.workspace.settings import Sweep

_ANSWER_SECONDS = 10


def check(asked: Sweep) -> None:
    """As `flows.runners.Cluster.check`."""
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


def runner(asked: Sweep) -> Any:
    """Prefect's task runner. A cluster of our own speaks TLS on the loopback, with keys made anew."""
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


@contextmanager
def elsewhere(asked: Sweep, refused: Set[str]) -> Iterator[bool]:
    """As `flows.runners.Cluster.elsewhere`. While none is refused none is named: others may come later."""
    import dask
    from prefect.context import FlowRunContext

    wishes: dict[str, Any] = {"resources": asked.resources} if asked.resources else {}
    if refused:
        context = FlowRunContext.get()
        assert context is not None, "points are submitted inside the flow"
        runner: Any = context.task_runner
        wishes["workers"] = sorted(runner.client.scheduler_info(n_workers=-1)["workers"].keys() - refused)
    with dask.annotate(**wishes):
        yield wishes.get("workers") != []


def worker_here() -> str:
    """Its address."""
    from distributed import get_worker

    return str(get_worker().address)
