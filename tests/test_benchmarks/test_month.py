from pathlib import Path

import pytest

from benchmarks import month, registry
from benchmarks.month import Disk, Rules, Sizes, simulate, sizes_of
from benchmarks.random_checkpoint import llama_config
from benchmarks.scaling import Tokens
from flows.run import run_of
from flows.stages import wanted_stages
from tasks.disk.freeing import Asked, free
from tasks.workspace.sizes import size_of

UNITS = Sizes(base=1000, windows=1, dense=10, masks=100, measures=1)
DAYS = {"nights": 30, "base_every": 10, "settings_every": 3, "gpus": 8}
TOLERANCE = 0.1
"""Of what is said: the disk's blocks, headers of files and MLflow's own records are not counted."""


def test_without_gc_everything_stays_and_with_it_the_state_and_what_versions_are_replayed_from() -> None:
    disk = Disk(UNITS)
    for new_base in (True, False, True):
        disk.run(new_base=new_base)
    left = disk.places("masks")
    assert left["downloads"] == 2 * 1000
    assert left["DVC's cache"] == 2 * 1000 + 2 * 10 + 1 + 3 * (100 + 1000 + 1)
    assert left["MLflow"] == 3 * (100 + month.BESIDE)
    assert left["work"] == 100
    disk.collect(Rules("masks", gc=True))
    kept = disk.places("masks")
    assert kept["DVC's cache"] == 2 * 1000 + 10 + 1 + (100 + 1000 + 1)
    assert (kept["MLflow"], kept["work"]) == (left["MLflow"], 0)
    disk.collect(Rules("masks", gc=True, keep=1))
    assert disk.places("masks")["DVC's cache"] == 1000 + 10 + 1 + (100 + 1000 + 1)
    assert disk.places("masks")["MLflow"] == 100 + month.BESIDE


def test_a_month_is_the_same_each_time_and_masks_are_a_fraction_of_checkpoints() -> None:
    whole, masks = (simulate(Rules(artifact), **DAYS) for artifact in ("checkpoint", "masks"))
    assert whole == simulate(Rules("checkpoint"), **DAYS)
    assert whole.runs == 600
    assert whole.versions == masks.versions < 600
    assert masks.places["MLflow"] < 0.06 * whole.places["MLflow"]
    assert whole.most == sum(whole.places.values())  # it only grows
    freed = simulate(Rules("masks", gc=True, keep=4), **DAYS)
    assert sum(freed.places.values()) < freed.most < 0.5 * masks.most


def test_the_page_shows_the_month_that_the_command_prints() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert month.table(**DAYS) in page
    whole = simulate(month.SCENARIOS[0], **DAYS)
    assert f"{whole.runs} runs, {whole.versions} versions, {whole.hours:,.0f} GPU hours" in page


@pytest.mark.slow
@pytest.mark.parametrize("artifact", ["checkpoint", "masks"])
def test_a_real_workspace_grows_and_shrinks_by_the_bytes_that_are_simulated(artifact: str, tmp_path: Path) -> None:
    config = llama_config(layers=4, hidden=512, intermediate=1536, heads=4, vocabulary=300, context=128)
    ws = registry.new_workspace(tmp_path / "ws", config, (f"register.artifact={artifact}",))
    disk = Disk(sizes_of(config, Tokens(windows=8, length=32, held_out=4, held_out_length=32)))

    def lies_there() -> dict[str, int]:
        return {
            "DVC's cache": size_of(ws.root / ".dvc" / "cache" / "files").bytes,
            "MLflow": size_of(ws.root / "mlartifacts").bytes,
            "work": size_of(ws.work).bytes,
        }

    def compare() -> None:
        for place, bytes_ in lies_there().items():
            assert bytes_ == pytest.approx(disk.places(artifact)[place], rel=TOLERANCE, abs=TOLERANCE * 1e6), place

    for number in range(2):
        with run_of(str(ws.root), [f"prune.alpha={number / 2}"]) as run:
            for stage in wanted_stages(None):
                run.stage(stage)
            assert run.register().version == str(number + 1)
        disk.run(new_base=number == 0)
        compare()
    free(ws, Asked())
    disk.collect(Rules(artifact, gc=True))
    compare()
