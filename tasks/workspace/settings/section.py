"""What all sections share. A setting's description is what `dass settings`, editors and docs/settings.md say of it."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of params.yaml: unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def limits(**schema: Any) -> dict[str, Any]:
    """Of a setting that is checked elsewhere, with words of its own: its limits as JSON schema tells them."""
    return schema
