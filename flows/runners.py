"""Who works on a sweep's points: threads of this process, or a cluster of Dask or Ray, here or at an address."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, cast

from dass.errors import InputError
from tasks.workspace.settings import Sweep

if TYPE_CHECKING:
    from collections.abc import Set


class Cluster(Protocol):
    """What `flows.dask_cluster` and `flows.ray_cluster` know."""

    def check(self, asked: Sweep) -> None:
        """Raise InputError where Prefect's part is not installed, nothing answers at the address within 10 s, or nobody
        works there."""

    def runner(self, asked: Sweep) -> Any:
        """Prefect's task runner."""

    def elsewhere(self, asked: Sweep, refused: "Set[str]") -> AbstractContextManager[bool]:
        """While it is entered, what is submitted asks for `sweep.resources` and avoids workers; false: none is left."""

    def worker_here(self) -> str:
        """The scheduler's name for this process."""


def check_runner(asked: Sweep) -> None:
    """Ask whether what `sweep.runner` needs is there.

    Raises:
        InputError: as `Cluster.check`; a setting is a cluster's, and there is none.
    """
    if asked.runner == "threads":
        for name in ("address", "resources", "threads"):
            if getattr(asked, name):
                raise InputError(
                    f"sweep.{name} is set and sweep.runner is threads: it is a cluster's. Use runner: dask or ray."
                )
    else:
        _cluster(asked.runner).check(asked)


def runner_of(asked: Sweep) -> Any:
    """Prefect's task runner for points."""
    if asked.runner == "threads":
        from prefect.task_runners import ThreadPoolTaskRunner

        return ThreadPoolTaskRunner(max_workers=asked.parallel)
    if asked.address is None:
        # Its processes have more threads together than there are cores. OpenMP's wait for one another by spinning, on
        # the cores that the others need, unless they are to sleep. Read when a process first loads torch.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return _cluster(asked.runner).runner(asked)


def elsewhere(asked: Sweep, refused: "Set[str]") -> AbstractContextManager[bool]:
    """As `Cluster.elsewhere`."""
    return nullcontext(True) if asked.runner == "threads" else _cluster(asked.runner).elsewhere(asked, refused)


def worker_here(runner: str) -> str:
    """As `Cluster.worker_here`."""
    return _cluster(runner).worker_here()


def _cluster(runner: str) -> Cluster:
    from flows import dask_cluster, ray_cluster

    return cast(Cluster, {"dask": dask_cluster, "ray": ray_cluster}[runner])
