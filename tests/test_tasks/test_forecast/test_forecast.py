"""What a run would take: the shape that is read, how work grows, and what is learned from runs."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from dass.files import read_json
from flows.initialise import make_workspace
from tasks.forecast import rates
from tasks.forecast.effort import Effort, effort_of
from tasks.forecast.forecast import forecast
from tasks.forecast.shape import Shape, of_config, of_gguf, shape_of
from tasks.workspace.settings import load_settings, validate_settings
from tests.gguf_files import write_tiny_gguf
from tests.models import save_tiny_checkpoint, tiny_model, tiny_text

SMOL = Shape(30, 576, 1536, 576, 192, 49152, tied=True)
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASS_CACHE", str(tmp_path / "cache"))


def test_a_shape_counts_the_weights_that_there_are(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    shape = of_config(read_json(tmp_path / "model" / "config.json"))
    vectors = sum(each.numel() for each in model.parameters() if each.dim() == 1)  # norms
    assert shape.weights == sum(each.numel() for each in model.parameters()) - vectors
    assert 134e6 < SMOL.weights < 135e6


def test_a_gguf_header_says_the_same_as_the_config(tmp_path: Path) -> None:
    model = tiny_model()
    file = write_tiny_gguf(tmp_path / "tiny.gguf", model)
    said, of = of_gguf(file, 2), of_config(model.config.to_dict())
    assert (said.layers, said.hidden, said.intermediate, said.queries, said.keys) == (
        of.layers,
        of.hidden,
        of.intermediate,
        of.queries,
        of.keys,
    )
    assert (said.vocabulary, said.tied) == (of.vocabulary, of.tied)


def test_work_grows_with_tokens_and_layers() -> None:
    settings = load_settings(ROOT / "params.yaml")
    values = settings.model_dump(by_alias=True)
    twice = validate_settings({**values, "calibration": {**values["calibration"], "samples": 64}}, "here")
    one, two = (effort_of("prune", SMOL, each) for each in (settings, twice))
    assert one is not None
    assert two is not None
    assert two.operations == 2 * one.operations
    # what benchmarks/flops.py counts by hand, but for the last layer
    assert one.operations == pytest.approx(5.5e12, rel=0.1)
    fitted = validate_settings({**values, "prune": {**values["prune"], "update": "reconstruct"}}, "here")
    more = effort_of("prune", SMOL, fitted)
    assert more is not None
    assert more.operations > one.operations


def test_how_long_tasks_take_is_not_told() -> None:
    settings = load_settings(ROOT / "params.yaml")
    values = settings.model_dump(by_alias=True)
    asked = validate_settings({**values, "evaluate": {**values["evaluate"], "tasks": ["piqa"]}}, "here")
    assert effort_of("tasks", SMOL, settings) is not None
    assert effort_of("tasks", SMOL, asked) is None


def test_a_stage_takes_what_one_like_it_took() -> None:
    small, large = Effort(1.0, 2e12), Effort(1.0, 4e12)
    kind = "prune cpu auto"
    machine = rates.Machine()
    assert not machine.knows(kind)
    assert machine.seconds(kind, small) > 1.0
    rates.note(kind, small, 63.0)  # three times what is reckoned: 1 + 20
    machine = rates.Machine()
    assert machine.knows(kind)
    assert machine.seconds(kind, small) == pytest.approx(63.0)
    assert machine.seconds(kind, large) == pytest.approx(3 * 41.0)
    assert machine.seconds("prune cuda auto", small) != pytest.approx(63.0)
    for _ in range(20):
        rates.note(kind, small, 42.0)
    assert rates.Machine().seconds(kind, small) == pytest.approx(42.0)
    assert len(rates._read()[kind]) == 8


def test_a_busy_hour_and_other_sizes_do_not_count() -> None:
    kind, model, tiny = "baseline cpu auto", Effort(2.0, 5e12), Effort(2.0)
    for took in (60.0, 64.0, 410.0):
        rates.note(kind, model, took)
    for _ in range(20):
        rates.note(kind, tiny, 5.0)
    assert rates.Machine().seconds(kind, model) == pytest.approx(64.0)
    assert rates.Machine().seconds(kind, tiny) == pytest.approx(5.0)
    rates.note("evaluate cpu auto", model, 410.0)
    rates.note("evaluate cpu auto", model, 70.0)
    assert rates.Machine().seconds("evaluate cpu auto", model) == pytest.approx(70.0)


def test_a_damaged_note_of_rates_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "rates.json").write_text('{"prune cpu auto": ')
    assert rates.Machine().seconds("prune cpu auto", Effort(1.0)) == 1.0
    rates.note("prune cpu auto", Effort(1.0), 2.0)
    assert rates.Machine().seconds("prune cpu auto", Effort(1.0)) == 2.0


def test_a_forecast_needs_no_run_before(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path / "model")
    (tmp_path / "text.txt").write_text(tiny_text(100))
    ws = make_workspace(tmp_path / "ws", str(tmp_path / "model"), *[str(tmp_path / "text.txt")] * 2)
    settings = load_settings(ws.params)
    shape = shape_of(ws, settings)
    assert shape is not None
    found = forecast(ws, settings, ["start", "sources", "prune", "register"])
    assert (found.downloads, found.unknown) == ([], None)
    assert list(found.stages) == ["start", "sources", "prune", "register"]
    assert found.stages["prune"].disk == shape.mlp_weights // 8
    assert not any(each.seen for each in found.stages.values())
