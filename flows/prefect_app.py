"""What a Prefect server of our own runs: Prefect's application, which answers to this machine's own names only."""

from fastapi.middleware.trustedhost import TrustedHostMiddleware
from prefect.server.api.server import create_app as prefect_app

_NAMES = ("127.0.0.1", "localhost")


def create_app() -> TrustedHostMiddleware:
    """Make it for uvicorn. A request or websocket for another host is refused with status 400.

    A browser sends the name of the site that a page comes from, also when that name has been made to lead to this
    machine (DNS rebinding). Prefect has no setting for it.
    """
    return TrustedHostMiddleware(prefect_app(), allowed_hosts=_NAMES, www_redirect=False)
