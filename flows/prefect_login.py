"""What a Prefect server of our own asks of everybody who speaks to it: Prefect's auth string."""

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flows.prefect_settings import origin

if TYPE_CHECKING:
    from prefect.settings import Settings

SERVER, CLIENT = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"


@dataclass(frozen=True)
class Login:
    """An auth string, in the form user:password.

    It travels in the environment of the server and of our own children, which only this user reads: never in arguments,
    in files or in a log.

    Attributes:
        secret: the auth string. Prefect's UI calls it the password.
        chosen: where the user's settings give it, in words; None: it was made for this start.
    """

    secret: str = field(repr=False)
    chosen: str | None

    @classmethod
    def of(cls, settings: "Settings") -> "Login":
        """The one that Prefect's settings give, the server's before the client's; else a random one."""
        for section, given in (
            ("ServerAPISettings", settings.server.api.auth_string),
            ("APISettings", settings.api.auth_string),
        ):
            if given is not None and given.get_secret_value():
                return cls(given.get_secret_value(), origin(section, "auth_string") or "Prefect's settings")
        return cls(f"dass:{secrets.token_hex(16)}", None)
