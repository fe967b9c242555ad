"""Section `sweep`: many settings at once."""

from typing import Any, Literal

from pydantic import Field

from tasks.workspace.settings.section import Section

SearchKind = Literal["grid", "random", "tpe", "nsga2"]


class Sweep(Section):
    """What `dass sweep` tries. A run does not read it, so it is part of no result and no record of one."""

    over: dict[str, list[Any] | dict[str, int | float | bool]] = Field(
        default={},
        description="Setting -> the values it takes: prune.sparsity: [0.3, 0.5]; with another search than grid also a "
        "range, {low: 0.3, high: 0.7}, with step or log: true.",
    )
    search: SearchKind = Field(
        default="grid",
        description="grid: every combination; random: so many trials of them; tpe and nsga2: Optuna's samplers, which "
        "learn from the points before.",
    )
    trials: int = Field(default=20, gt=0, description="Points of a search that is no grid.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of a search that draws: equal seeds, equal points.")
    objectives: dict[str, Literal["min", "max"]] = Field(
        default={"sparsity.mlp": "max", "ratio": "min"},
        description="Figures of metrics/evaluation.json that points are compared by, and which way is better; "
        "divergence.kl and tasks.NAME.pruned.acc are others.",
    )
    max_points: int = Field(default=256, gt=0, description="A sweep of more points is refused before it starts.")
    parallel: int = Field(default=1, gt=0, description="Points worked on at once; each holds a model in memory.")
    runner: Literal["threads", "dask", "ray"] = Field(
        default="threads", description="Who works on points: threads of this process, or a cluster of Dask or Ray."
    )
    address: str | None = Field(
        default=None,
        description="Of a cluster whose workers see the workspace's folder; null starts one here.",
    )
    resources: dict[str, float] = Field(
        default={},
        description="What the cluster sets aside for each point, by the names that its workers were given; of Ray also "
        "CPU, GPU and memory in bytes.",
    )
    threads: int | None = Field(
        default=None,
        gt=0,
        description="Torch's threads of each point on a cluster, on which a figure's last digits depend; null: as many "
        "as the command's own, and at an address each worker's.",
    )
