"""Section `calibration`."""

from fractions import Fraction
from typing import Literal

from pydantic import Field, field_validator

from tasks.workspace.settings.section import Section
from tasks.workspace.settings.sources import Source, check_names

Bos = Literal["auto", "always", "never"]


class CalibrationText(Source):
    """A text besides sources.calibration, and which share of the windows it gives."""

    share: float = Field(gt=0.0, lt=1.0, description="Share of the windows that it gives.")


class Calibration(Section):
    """The windows that statistics are taken on."""

    samples: int = Field(gt=0, description="How many windows.")
    sequence_length: int = Field(gt=1, description="Tokens of a window.")
    seed: int = Field(ge=0, lt=2**63, description="Draws the windows.")
    bos: Bos = Field(default="auto", description="BOS at the start of every window; auto: of Gemma's only.")
    source: Literal["text", "self"] = Field(
        default="text",
        description="What gives the windows, but for the shares of texts: sources.calibration, or the dense model "
        "writes them itself, on engine.device.",
    )
    temperature: float = Field(default=1.0, gt=0.0, le=10.0, description="Of what the model writes itself.")
    top_k: int | None = Field(
        default=None, gt=0, description="The model draws from the so many likeliest tokens; null: from all."
    )
    texts: dict[str, CalibrationText] = Field(
        default={}, description="More texts by name, each a source with its share of the windows."
    )

    @field_validator("texts")
    @classmethod
    def _leave_a_rest(cls, value: dict[str, CalibrationText]) -> dict[str, CalibrationText]:
        check_names(value, ("calibration", "self"))
        if (total := sum(Fraction(str(text.share)) for text in value.values())) >= 1:
            raise ValueError(f"the shares add up to {float(total):g}: expected less than 1, the rest is the source's")
        return value
