"""The flows as the deployments of prefect.yaml have them: each with the time that it may take, and no more.

What is tried again, and when, the tasks themselves say (`flows.retries`).
"""

from flows.compress import compress
from flows.gc import gc
from flows.promote import promote
from flows.sweep import sweep
from flows.verify import verify_all

_HOUR = 3600

nightly = compress.with_options(timeout_seconds=20 * _HOUR)
"""Over before the next night."""

by_hand = compress.with_options(timeout_seconds=7 * 24 * _HOUR)
promotion = promote.with_options(timeout_seconds=6 * _HOUR)
"""Rules may ask for a proof with a replay."""

many = sweep.with_options(timeout_seconds=7 * 24 * _HOUR)
weekly = verify_all.with_options(timeout_seconds=24 * _HOUR)

freeing = gc.with_options(timeout_seconds=6 * _HOUR)
"""A store on a server answers file by file."""
