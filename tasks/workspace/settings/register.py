"""Section `register`."""

from typing import Literal

from pydantic import Field

from tasks.workspace.settings.section import Section


class Register(Section):
    """Where the result is registered in MLflow, and what its version holds."""

    model: str = Field(pattern=r"^[^/:]+$", min_length=1, description="The registered model's name.")
    experiment: str = Field(min_length=1, description="The MLflow experiment.")
    artifact: Literal["checkpoint", "masks"] = Field(
        default="checkpoint",
        description="What a version holds: the pruned checkpoint, or masks only; the base is then fetched when the "
        "version is loaded.",
    )
    save_experiment: bool = Field(
        default=False,
        description="Also save the workspace as a DVC experiment, which the version's tags name. Needs git.",
    )
    remotes: list[str] | None = Field(
        default=None,
        description="DVC remotes that data and results are pushed to before the version is registered; null: the "
        "default remote, if there is one; []: none.",
    )
