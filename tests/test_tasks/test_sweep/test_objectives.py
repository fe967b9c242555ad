"""What points may be compared by."""

from pathlib import Path

import pytest

from dass.errors import InputError
from dass.files import read_json
from tasks.sweep.objectives import _OF_EVERY_POINT, check_objectives, lacking
from tasks.sweep.records import figures_of
from tasks.sweep.search import search_of
from tasks.sweep.space import Space
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Sweep


def test_every_figure_of_an_evaluation_may_be_named(finished: Workspace) -> None:
    figures = figures_of(read_json(finished.metrics / "evaluation.json"))
    assert set(_OF_EVERY_POINT) <= set(figures)
    for name in figures:
        check_objectives(Sweep(objectives={name: "min"}))


@pytest.mark.parametrize("name", ["ppl", "divergence.k1", "perplexity", "tasks", "tasks.", "pruned", "sparsity", ""])
def test_what_no_point_can_have_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"sweep\.objectives names .*no figure of a point: expected ratio"):
        check_objectives(Sweep(objectives={"ratio": "min", name: "max"}))


def test_nothing_to_compare_by_is_refused() -> None:
    with pytest.raises(InputError, match=r"sweep\.objectives is empty"):
        check_objectives(Sweep(objectives={}))


def test_a_figure_that_no_point_has_is_told_with_those_there_are() -> None:
    wanted = {"tasks.piqa.pruned.acc": "max", "ratio": "min"}
    assert lacking(wanted, []) is None
    assert lacking(wanted, [{"ratio": 1.0}, {"ratio": 1.0, "tasks.piqa.pruned.acc": 0.5}]) is None
    assert "nothing of tasks was measured" in (lacking(wanted, [{"ratio": 1.0}]) or "")
    told = lacking(wanted, [{"ratio": 1.0, "tasks.arc_easy.pruned.acc": 0.5}]) or ""
    assert told.startswith("No point has the figure tasks.piqa.pruned.acc of sweep.objectives (it has tasks.arc_easy.")


def test_a_search_that_would_learn_nothing_ends_behind_its_first_points(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    (tmp_path / "params.yaml").write_bytes(Path(__file__).parents[3].joinpath("params.yaml").read_bytes())
    asked = ["sweep.search=tpe", "prune.alpha={low: 0.0, high: 1.0}", "sweep.objectives={tasks.piqa.pruned.acc: max}"]
    search = search_of(Space.read(Workspace(tmp_path), asked))
    batches = search.batches()
    for point in next(batches):
        search.tell(point, {"ratio": 1.0})
    with pytest.raises(InputError, match=r"No point has the figure tasks\.piqa\.pruned\.acc .* they are found"):
        next(batches)
