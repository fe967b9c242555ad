"""A Ray cluster that works on a sweep's points."""

import math
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from dass.errors import InputError
from tasks.workspace.settings import Sweep

_ANSWER_SECONDS = 10
_STORE_BYTES = 100 * 2**20  # records are small
_ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Off, Ray is for this machine alone and listens on the loopback. It is read when Ray is imported; Linux has it on."""
_OWN_NAMES = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}


def check(asked: Sweep) -> None:
    """As `flows.runners.Cluster.check`."""
    if find_spec("prefect_ray") is None or find_spec("ray") is None:  # importing Ray would fix what `runner` sets
        raise InputError("sweep.runner is ray, and prefect-ray is not installed: pip install 'dass[ray]'")
    if asked.address is None:
        return
    host, _, port = asked.address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, ValueError):
        raise InputError(
            f"sweep.address is {asked.address}: no Ray answers there within {_ANSWER_SECONDS} s. Start it (ray start "
            "--head), correct the address (HOST:6379, or ray://HOST:10001 from outside), or leave it out for a cluster "
            "on this machine."
        ) from None


def runner(asked: Sweep) -> Any:
    """Prefect's task runner. A cluster of our own is on the loopback, and asks whoever comes for a token made anew."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would tell its makers
    if asked.address is None:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), _ALONE: "0"}
    from prefect_ray import RayTaskRunner

    if asked.address is not None:
        return RayTaskRunner(address=asked.address, init_kwargs={"log_to_driver": False})
    wishes = options_of(asked.resources)
    named = {name: asked.parallel * count for name, count in wishes.pop("resources", {}).items()}
    here = {
        "address": "local",  # else Ray would join one that it finds
        "num_cpus": math.ceil(asked.parallel * wishes.get("num_cpus", 1)),
        "resources": named or None,
        "object_store_memory": _STORE_BYTES,
        "include_dashboard": False,
        "log_to_driver": False,
    }
    return RayTaskRunner(init_kwargs=here)


def options_of(resources: Mapping[str, float]) -> dict[str, Any]:
    """`sweep.resources` as Ray's options of a task: CPU, GPU and memory (bytes) are its own, others a node's."""
    own = {_OWN_NAMES[name]: count for name, count in resources.items() if name in _OWN_NAMES}
    named = {name: count for name, count in resources.items() if name not in _OWN_NAMES}
    return {**own, **({"resources": named} if named else {})}


@contextmanager
def elsewhere(asked: Sweep, refused: Set[str]) -> Iterator[bool]:
    """As `flows.runners.Cluster.elsewhere`; what is refused is a node, whose processes are all alike."""
    import ray
    from prefect_ray.context import remote_options

    wishes = options_of(asked.resources)
    left = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - refused
    if refused:
        wishes["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(refused))})"}
    with remote_options(**wishes):
        yield bool(left)


def worker_here() -> str:
    """Its node's id."""
    import ray

    return str(ray.get_runtime_context().get_node_id())
