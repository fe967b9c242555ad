"""Section `notify`: who hears of decisions and failures."""

import re
from typing import Literal

from pydantic import Field, field_validator

from tasks.workspace.settings.section import Section

Event = Literal["refused", "promoted", "rolled_back", "failed"]
FROM_ENVIRONMENT = "env:"
"""In front of an address: the name of the environment variable that holds it."""

_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"


class Notify(Section):
    """Webhooks. A result does not depend on them, so no record of one holds this section."""

    urls: list[str] = Field(
        default=[],
        description="Addresses that get a POST; env:NAME takes one from an environment variable, as it should be where "
        "whoever knows the address may post to it.",
    )
    events: list[Event] = Field(
        default=["refused", "promoted", "rolled_back", "failed"],
        description="What they hear of: a version that a rule refused, a new champion, a rollback, a run, promotion, "
        "sweep or proof that failed.",
    )
    secret_env: str | None = Field(
        default=None,
        pattern=rf"^{_VARIABLE}$",
        description="The environment variable with the secret that bodies are signed with; null signs none.",
    )
    timeout: int = Field(
        default=10, gt=0, le=120, description="Seconds that telling them may take in all, tries again included."
    )

    @field_validator("urls")
    @classmethod
    def _are_addresses(cls, value: list[str]) -> list[str]:
        for number, url in enumerate(value, start=1):
            if not re.fullmatch(rf"https?://[^\s/].*|{FROM_ENVIRONMENT}{_VARIABLE}", url):
                raise ValueError(f"entry {number}: expected https://..., or env:NAME of a variable that holds it")
        return value
