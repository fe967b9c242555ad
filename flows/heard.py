"""What Prefect's pages only show is no reason to stop: a server that does not answer is named, and the work goes on.

Its server may be restarted under a run of many hours. What a run needs of it, at its begin and its end, is asked for
again for some seconds, and then it is an error (`flows.prefect_api`).
"""

import logging
import time
from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec

from httpx import HTTPStatusError, RequestError

logger = logging.getLogger("dass")
P = ParamSpec("P")

_REST = 10  # as long again, so often, as it took to find out that nobody answers, nobody is asked
_rest_until = 0.0


def if_heard(show: Callable[P, None]) -> Callable[P, None]:
    """Around a function that shows something: what Prefect's server does not take is left out, which is said once."""

    @wraps(show)
    def try_to_show(*arguments: P.args, **options: P.kwargs) -> None:
        global _rest_until
        began = time.monotonic()
        if began < _rest_until:
            return
        try:
            show(*arguments, **options)
        except (RequestError, HTTPStatusError) as error:
            now = time.monotonic()
            _rest_until = now + _REST * (now - began)
            lines = str(error).splitlines()
            _tell(lines[0].rstrip(".") if lines else type(error).__name__)

    return try_to_show


@cache
def _tell(reason: str) -> None:
    logger.warning("Prefect's server does not answer (%s): its pages miss what is done meanwhile", reason)
