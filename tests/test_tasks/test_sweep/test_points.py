"""Which points a sweep has, which of them none beats, and what is written of them."""

from pathlib import Path

import pytest
from pyarrow import parquet

from dass.errors import InputError
from tasks.sweep.figures import write_figures
from tasks.sweep.page import page
from tasks.sweep.pareto import front, pareto_table
from tasks.sweep.records import Record, sweep_id
from tasks.sweep.search import Listed, search_of
from tasks.sweep.space import Point, Space
from tasks.workspace.folder import Workspace
from tests.printing import printed

BOTH = {"sparsity.mlp": "max", "ratio": "min"}


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    root = Path(__file__).parents[3]
    (tmp_path / "params.yaml").write_bytes((root / "params.yaml").read_bytes())
    return Workspace(tmp_path)


def points(ws: Workspace, *changes: str) -> list[Point]:
    search = search_of(Space.read(ws, changes))
    assert isinstance(search, Listed)
    return search.points


def done(ws: Workspace) -> list[tuple[Point, Record]]:
    figures = [(0.3, 1.1), (0.5, 1.4), (0.5, 1.3), (0.7, 3.0)]
    records: list[Record] = [
        Record(f"k{at}", f"f{at}", f"m{at}", {"sparsity.mlp": sparsity, "ratio": ratio}, {"prune": 1.5})
        for at, (sparsity, ratio) in enumerate(figures)
    ]
    records.append(Record("k5", failed="activations are NaN"))
    return list(zip(points(ws, "prune.alpha=0,0.5,1,1.5,2"), records, strict=True))


def test_a_grid_is_every_combination_and_a_single_value_holds_for_all(ws: Workspace) -> None:
    found = points(ws, "prune.sparsity=0.3,0.5,0.5", "prune.method=[dass, wanda]", "prune.propagation=dense")
    assert [point.values for point in found] == [
        {"prune.sparsity": sparsity, "prune.method": method} for sparsity in (0.3, 0.5) for method in ("dass", "wanda")
    ]
    assert {point.settings.prune.propagation for point in found} == {"dense"}
    assert found[3].told == "point 4 (prune.sparsity=0.5, prune.method=wanda)"


def test_a_pattern_is_no_number_and_null_is_a_value(ws: Workspace) -> None:
    found = points(ws, "prune.pattern=2:4,4:8", "prune.sparsity=null")
    assert [str(point.settings.prune.plan.pattern) for point in found] == ["2:4", "4:8"]


def test_params_yaml_names_what_is_swept_over_and_s_takes_its_place(ws: Workspace) -> None:
    text = ws.params.read_text(encoding="utf-8")
    ws.params.write_text(
        text.replace("over: {}", "over: {prune.alpha: [0, 1], prune.method: [dass]}"), encoding="utf-8"
    )
    assert [point.values for point in points(ws)] == [{"prune.alpha": 0}, {"prune.alpha": 1}]
    assert [point.values for point in points(ws, "prune.alpha=1,2")] == [{"prune.alpha": 1}, {"prune.alpha": 2}]


def test_a_random_draw_is_known_by_its_seed_and_stays_in_its_ranges(ws: Workspace) -> None:
    asked = ("sweep.search=random", "prune.sparsity={low: 0.3, high: 0.7}", "prune.method=dass,wanda", "sweep.trials=5")
    found = [point.values for point in points(ws, *asked)]
    assert found == [point.values for point in points(ws, *asked)]
    assert found != [point.values for point in points(ws, *asked, "sweep.seed=1")]
    assert len(found) == 5
    assert all(0.3 <= values["prune.sparsity"] <= 0.7 for values in found)
    names = {sweep_id(Space.read(ws, changes)) for changes in (asked, asked, (*asked, "sweep.seed=1"))}
    assert len(names) == 2


@pytest.mark.parametrize("kind", ["tpe", "nsga2"])
def test_optuna_asks_again_for_the_same_points_and_hears_of_a_combination_that_cannot_be(
    ws: Workspace, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("optuna")

    def asked() -> list[dict[str, object]]:
        asked = ["sweep.trials=12", "sweep.parallel=2", "prune.sparsity={low: 0.3, high: 0.7}"]
        asked += ["sweep.objectives={ratio: min}"] if kind == "tpe" else []
        space = Space.read(ws, [*asked, f"sweep.search={kind}", "prune.pattern=unstructured,2:4"])
        search, found = search_of(space), []
        for batch in search.batches():
            for point in batch:
                found.append(point.values)
                sparsity = point.values["prune.sparsity"]
                search.tell(point, {"ratio": 1 + sparsity**2, "sparsity.mlp": sparsity})
        return found

    first = asked()
    assert first == asked()
    assert 0 < len(first) < 12  # 2:4 takes away half, and no other share
    assert "The search goes on without it" in caplog.text


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_step_between_whole_ends_need_not_be_whole(ws: Workspace, kind: str) -> None:
    if kind == "tpe":
        pytest.importorskip("optuna")
    space = Space.read(ws, ["prune.alpha={low: 0, high: 1, step: 0.25}", f"sweep.search={kind}", "sweep.trials=24"])
    search, found = search_of(space), set()
    for batch in search.batches():
        for point in batch:
            found.add(point.values["prune.alpha"])
            search.tell(point, {"ratio": 1.0, "sparsity.mlp": 0.5})
    assert found == {0, 0.25, 0.5, 0.75, 1}


def test_whole_ends_are_whole_numbers_in_params_yaml_too(ws: Workspace) -> None:
    pytest.importorskip("optuna")
    over = "over: {calibration.samples: {low: 8, high: 64}, prune.alpha: {low: 0.0, high: 1}}"
    ws.params.write_text(ws.params.read_text(encoding="utf-8").replace("over: {}", over), encoding="utf-8")
    for kind in ("random", "tpe"):
        search = search_of(Space.read(ws, [f"sweep.search={kind}", "sweep.trials=4"]))
        values = [point.values for batch in search.batches() for point in batch]
        assert {type(each["calibration.samples"]) for each in values} == {int}
        assert {type(each["prune.alpha"]) for each in values} == {float}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{low: null, high: 0.7, step: 0.1}", "low is None, expected a number"),
        ("{low: 0.3, high: .inf}", "high is inf, expected a number"),
        ("{low: 0.3, high: 0.7, step: .nan}", "step is nan, expected a number"),
        ("{low: 0.3, high: 0.7, step: true}", "step is True, expected a number"),
        ("{low: 0.3, high: 0.7, step: 0.5}", "a step above 0 that is no longer than the range"),
        ("{low: 0.7, high: 0.3}", "expected low below high"),
    ],
)
def test_a_range_that_is_none_is_named(ws: Workspace, given: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"sweep over prune\.sparsity: .*{message}"):
        Space.read(ws, [f"prune.sparsity={given}"])


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_step_may_be_the_whole_range(ws: Workspace, kind: str) -> None:
    if kind == "tpe":
        pytest.importorskip("optuna")
    asked = ["prune.sparsity={low: 0.3, high: 0.7, step: 0.4}", f"sweep.search={kind}", "sweep.trials=8"]
    found = {point.values["prune.sparsity"] for batch in search_of(Space.read(ws, asked)).batches() for point in batch}
    assert sorted(found) == pytest.approx([0.3, 0.7])


@pytest.mark.parametrize("values", ["{low: 0.3, high: 1.5}", "0.3,1.5"])
def test_a_value_that_no_point_can_have_is_refused_before_optuna_meets_it(ws: Workspace, values: str) -> None:
    pytest.importorskip("optuna")
    asked = ["sweep.search=tpe", f"prune.sparsity={values}", "prune.pattern=unstructured,2:4"]
    with pytest.raises(InputError, match=r"sweep over prune\.sparsity: no point can have 1\.5: .*sparsity"):
        search_of(Space.read(ws, asked))


def test_a_value_that_goes_with_some_of_the_others_is_left_to_the_search(ws: Workspace) -> None:
    pytest.importorskip("optuna")
    search_of(Space.read(ws, ["sweep.search=tpe", "prune.sparsity=0.3,null", "prune.pattern=unstructured,2:4"]))


def test_optuna_takes_words_and_numbers_only(ws: Workspace) -> None:
    with pytest.raises(InputError, match="neither a number nor a choice"):
        search_of(Space.read(ws, ["sweep.search=tpe", "evaluate.tasks=[[piqa],[arc_easy]]"]))


def test_the_front_is_what_none_beats(ws: Workspace) -> None:
    whole = done(ws)
    assert front(whole, BOTH) == [1, 3, 4]
    assert front(whole, {"ratio": "min"}) == [1]
    assert front(whole, {"divergence.kl": "min"}) == []


def test_the_table_fits_80_columns_and_begins_with_the_front(ws: Workspace) -> None:
    lines = printed(pareto_table(done(ws), BOTH, 80), 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("3 of 5 points are beaten by none")
    assert [line.split()[0] for line in lines[3:]] == ["1", "3", "4", "2", "5"]
    assert lines[-1].endswith("failed")


def test_the_page_and_the_parquet_file_have_every_point(ws: Workspace, tmp_path: Path) -> None:
    whole = done(ws)
    html = page("abc", whole, BOTH)
    assert "<title>sweep abc</title>" in html
    assert "activations are NaN" in html
    assert '"ratio"' in html
    write_figures(tmp_path / "f.parquet", "abc", whole, BOTH)
    table = parquet.read_table(tmp_path / "f.parquet").to_pylist()
    assert len(table) == 4 * 3
    assert table[0]["prune.alpha"] == "0"
    assert {row["figure"] for row in table} == {"sparsity.mlp", "ratio", "seconds.prune"}
