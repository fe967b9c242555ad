from pathlib import Path
from typing import Any

import pytest

from benchmarks.random_checkpoint import llama_config, stored_bytes
from benchmarks.scaling import ASSUMED, Costs, Machine, Tokens, costs_of, measured, plan
from dass.errors import InputError

TINY = llama_config(layers=2, hidden=8, intermediate=16, heads=2, vocabulary=32, context=64)


def test_points_are_done_in_rounds_behind_what_is_done_once() -> None:
    costs = Costs(once=100.0, point=10.0, start=5.0)
    assert costs.total(40, 1) == 505.0
    assert costs.total(40, 8) == 155.0
    assert costs.total(40, 64) == costs.total(40, 40) == 115.0
    assert costs.busy(40, 1) == 1.0
    assert costs.busy(40, 64) == pytest.approx((100 + 400 + 200) / (64 * 115))


def test_the_pieces_are_operations_and_bytes() -> None:
    tokens = Tokens(windows=1, length=4, held_out=2, held_out_length=4)
    only_disk = Machine(operations=float("inf"), memory=float("inf"), disk=1.0, shared=4.0)
    mlp_bytes = 2 * 3 * 2 * 8 * 16
    assert costs_of(TINY, tokens, only_disk, 1) == Costs(2 * stored_bytes(TINY), 3 * mlp_bytes, stored_bytes(TINY))
    crowded = costs_of(TINY, tokens, only_disk, 8)  # eight share what four could have alone
    assert crowded == Costs(2 * stored_bytes(TINY), 2 * 3 * mlp_bytes, 2 * stored_bytes(TINY))

    only_products = Machine(operations=1.0, memory=float("inf"), disk=float("inf"), shared=float("inf"))
    products = costs_of(TINY, tokens, only_products, 1)
    twice = costs_of(TINY, Tokens(windows=1, length=4, held_out=4, held_out_length=4), only_products, 1)
    assert products.start == 0.0
    assert twice.point == 2 * products.point
    assert twice.once - products.once == products.point  # the dense model is measured as a point is


def test_more_gpus_than_points_are_idle() -> None:
    rows = [line.strip("| ").split(" | ") for line in plan(40, (1, 8, 40, 64)).splitlines()[2:]]
    assert [row[4] for row in rows] == ["40", "5", "1", "1"]
    assert rows[2][5] == rows[3][5]
    assert rows[0][6] == "1.0 ×"
    assert rows[0][7] == "100%"


def test_a_sweeps_own_seconds_are_its_pieces() -> None:
    def point(seconds: dict[str, float] | None) -> dict[str, Any]:
        return {"record": {"seconds": seconds}}

    shared = {"baseline": 4.0, "statistics": 6.0}
    points = [point({"prune": 1.0, "evaluate": 3.0})]
    points += [point({"prune": 3.0}), point(None)]  # masks that were measured before; one that failed
    sweep: dict[str, Any] = {"sweep": "abc", "shared_seconds": shared, "points": points}
    costs, table = measured(sweep)
    assert costs == Costs(once=10.0, point=3.5)
    assert "| a point: evaluate | 1 | 1.5 s |" in table
    with pytest.raises(InputError, match="made no point"):
        measured({**sweep, "points": [point(None)]})


def test_the_page_shows_the_plan_that_the_command_prints() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert plan(40, (1, 8, 64)) in page
    assert f"{ASSUMED.disk / 1e9:g} GB/s" in page
