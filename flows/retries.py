"""What a task tries again when nobody sits before the run: what failed because of a network, a server or a disk.

Mathematics is never tried again, nor is what was refused. A person is told at once.
"""

from typing import Any

from flows.exit_status import INFRASTRUCTURE, judged
from flows.served import is_served
from tasks.workspace.lease import LeaseLostError


def may_pass(task: Any, task_run: Any, state: Any) -> bool:
    """Whether what a task failed with may be gone in a while. Prefect asks it."""
    error = state.data
    if not is_served() or not isinstance(error, Exception) or isinstance(error, LeaseLostError):
        return False
    return judged(error)[0] == INFRASTRUCTURE


AGAIN: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": [10, 60, 300],
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": may_pass,
}
