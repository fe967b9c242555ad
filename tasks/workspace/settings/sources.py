"""Section `sources`, and how any section names where a text comes from."""

import re
from collections.abc import Iterable
from typing import Literal

from pydantic import Field, model_validator

from tasks.workspace.settings.section import Section

DType = Literal["auto", "float32", "bfloat16", "float16"]


class Source(Section):
    """Where a model or a text comes from."""

    uri: str | list[str] = Field(
        description="org/name@revision on the hub, a local path, pypi://DIST==VERSION/PATH/IN/WHEEL, or a list of such "
        "wheel paths whose files are concatenated."
    )
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="Digest of the file (of the whole, for a list). Required for pypi://.",
    )
    split: str | None = Field(default=None, description='Which split of a hub data set to read; null is "train".')
    subset: str | None = Field(
        default=None, description="Which configuration of a hub data set to read, when it has several."
    )
    data_files: str | None = Field(
        default=None,
        description='Which of a hub data set\'s files to read ("en/c4-train.00000-of-01024.json.gz"); null is all.',
    )
    column: str = Field(default="text", description="Which column of a JSONL, parquet or hub data set holds the text.")

    @model_validator(mode="after")
    def _wheels_need_a_digest(self) -> "Source":
        uris = [self.uri] if isinstance(self.uri, str) else self.uri
        if not uris or not all(uris):
            raise ValueError("uri is empty: expected a hub id, a path or pypi://DIST==VERSION/PATH/IN/WHEEL")
        wheels = [uri.startswith("pypi://") for uri in uris]
        if len(uris) > 1 and not all(wheels):
            raise ValueError("uri is a list: only files inside wheels (pypi://...) can be concatenated")
        if any(wheels) and self.sha256 is None:
            raise ValueError(
                "sha256 is missing: a file inside a wheel is named by its digest. "
                "Add sha256, or -S sources.ROLE.sha256=DIGEST"
            )
        return self


def check_names(texts: Iterable[str], taken: tuple[str, ...]) -> None:
    """Refuse names of texts that cannot be names of files, and those of the section's own text."""
    for name in texts:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name) or name in taken:
            raise ValueError(
                f"a text is called {name[:50]!r}: expected letters, digits, _ and -, and not the name of "
                f"sources.{taken[0]}"
            )


class Sources(Section):
    """What goes in."""

    model: Source = Field(description="The model that is pruned.")
    calibration: Source = Field(description="The text that statistics are taken on.")
    evaluation: Source = Field(description="Held-out text that both models are measured on.")
    dtype: DType = Field(
        default="auto", description="Type of the base checkpoint: auto keeps its own, a GGUF becomes bfloat16."
    )
