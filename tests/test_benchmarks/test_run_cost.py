import dataclasses
from pathlib import Path

import pytest

from benchmarks import run_cost
from benchmarks.paths import RESULTS
from benchmarks.random_checkpoint import llama_config, stored_bytes
from benchmarks.run_cost import MODELS, Host, Stage, host_of, mlp_weights, seconds_of, stored_weights, work_of
from benchmarks.scaling import ASSUMED, Machine, Tokens
from dass.files import read_json

TINY = llama_config(layers=2, hidden=16, intermediate=32, heads=4, vocabulary=40, context=64, key_heads=2)
TOKENS = Tokens(windows=6, length=4, held_out=2, held_out_length=4)
ENDLESS = Host(*[float("inf")] * 5)
PRODUCTS = Machine(operations=1.0, memory=float("inf"), disk=float("inf"), shared=float("inf"))


def test_weights_are_those_of_the_model() -> None:
    assert 2 * stored_weights(TINY) == stored_bytes(TINY)
    assert [round(stored_weights(config()) / 1e9) for config in MODELS.values()] == [7, 71, 406]


def test_windows_are_shared_as_whole_ones_and_what_one_process_does_alone_is_not() -> None:
    work = work_of(TINY, TOKENS)

    def took(stage: str, gpus: int) -> float:
        return seconds_of(work[stage], PRODUCTS, ENDLESS, gpus, TOKENS.windows)

    alone = took("prune", 1)
    assert took("prune", 3) == alone / 3
    assert took("prune", 4) == took("prune", 3)  # six windows: two each, for some
    assert took("prune", 64) == took("prune", 6) == alone / 6
    assert took("evaluate", 8) == took("evaluate", 1) > 0
    host = dataclasses.replace(ENDLESS, packed=1.0)
    assert seconds_of(work["prune"], PRODUCTS, host, 8, 6) - took("prune", 8) == pytest.approx(mlp_weights(TINY))


def test_reading_hides_behind_products_and_machines_share_the_disk() -> None:
    stage = Stage(operations=80.0, read=100.0, is_shared=True)
    machine = Machine(operations=1.0, memory=1.0, disk=10.0, shared=20.0)
    assert seconds_of(stage, machine, ENDLESS, 1, 8) == 80.0
    assert seconds_of(stage, machine, ENDLESS, 8, 8) == 10.0
    assert seconds_of(stage, machine, ENDLESS, 64, 64) == 100 / (20 / 8)


def test_this_machine_is_measured_in_the_units_of_the_model() -> None:
    record = run_cost.measure(rows=64, columns=32, tokens=8)
    assert all(rate > 0 for rate in dataclasses.astuple(host_of(record)))


def test_the_page_shows_the_tables_that_the_command_prints() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
    host = host_of(read_json(RESULTS / "run_cost.json")["records"][0])
    assert run_cost.work_table() in page
    assert run_cost.time_table((1, 8, 64), host) in page
    assert run_cost.check_table(host, read_json(RESULTS / "shape_7b.json")["records"]) in page
    assert f"{ASSUMED.shared / 1e9:g} GB/s" in page
