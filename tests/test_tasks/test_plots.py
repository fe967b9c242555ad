from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from safetensors.torch import load_file, save_file
from torch import Tensor

from dass.errors import InputError
from dass.files import read_json, sha256_file
from tasks.plot_data import layer_rows, summary, title
from tasks.plots import draw_plots, layers_figure, norms_figure
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings
from tests.models import LAYERS


def text_of(figure: Figure) -> str:
    return " ".join(found.get_text() for found in figure.findobj(Text) if isinstance(found, Text))


def heights(axes: Axes) -> list[float]:
    """Of the bars, or of the points of the first line."""
    drawn = [bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)]
    return drawn or np.asarray(axes.lines[0].get_ydata()).tolist()


def norms_of(workspace: Workspace) -> list[Tensor]:
    statistics = load_file(workspace.masks / "statistics.safetensors")
    return [statistics[f"model.layers.{index}.mlp.norm_z"] for index in range(LAYERS)]


def test_equal_masks_give_equal_files(finished: Workspace, settings: Settings) -> None:
    def files() -> dict[str, str]:
        return {
            path.name: sha256_file(path) for folder in (finished.plots, finished.metrics) for path in folder.iterdir()
        }

    before = files()
    draw_plots(finished, settings)
    assert files() == before
    assert set(before) - {"evaluation.json", "tasks.json"} == {
        *("layers.png", "norms.png", "layers.json", "norms.json", "summary.json"),
    }


def test_plots_are_pictures_of_a_readable_size(finished: Workspace) -> None:
    for name in ("layers.png", "norms.png"):
        height, width, _ = imread(finished.plots / name).shape
        assert width > 900
        assert height > 500


def records_of(workspace: Workspace) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The manifest, and what was measured."""
    evaluation, tasks = (read_json(workspace.metrics / f"{name}.json") for name in ("evaluation", "tasks"))
    return read_json(workspace.masks / "manifest.json"), evaluation, tasks


def test_where_all_have_lost_the_same_it_is_said_once_and_the_errors_are_drawn(finished: Workspace) -> None:
    manifest, evaluation, _ = records_of(finished)
    figure = layers_figure(manifest, evaluation)
    [axes] = figure.axes
    assert heights(axes) == [layer["relative_error"] for layer in manifest["layers"]]
    perplexities = [f"{evaluation[which]['perplexity']:.2f}" for which in ("dense", "pruned")]
    for words in (
        "Every matrix of every layer has lost 50 % of its weights.",
        "Relative output error: ‖y − y dense‖ / ‖y dense‖",
        "model: dass, 50 % unstructured, layout paper, update none",
        f"perplexity {perplexities[0]} dense, {perplexities[1]} pruned",
        "decoder layer",
    ):
        assert words in text_of(figure)
    assert "gate_proj" not in text_of(figure)


def test_where_they_differ_there_is_a_bar_for_each(finished: Workspace) -> None:
    manifest, evaluation, _ = records_of(finished)
    manifest["layers"][1]["sparsity"]["up_proj"] = 0.4
    above, below = layers_figure(manifest, evaluation).axes
    assert sorted(heights(above)) == [0.4, *[0.5] * (3 * LAYERS - 1)]
    assert heights(below) == [layer["relative_error"] for layer in manifest["layers"]]
    assert "Every matrix" not in text_of(layers_figure(manifest, evaluation))


def test_the_title_names_the_model_and_no_secret(finished: Workspace) -> None:
    manifest, evaluation, _ = records_of(finished)
    for uri, name in (
        ("org/Some-Model@v2", "Some-Model@v2"),
        ("https://me:secret@host/models/m.gguf?token=secret", "m.gguf"),
        ("pypi://dist==1/dist/model.gguf", "model.gguf"),
        ("./model/", "model"),
        (["pypi://a==1/a/model.gguf.part00", "pypi://b==1/b/model.gguf.part01"], "model.gguf"),
    ):
        manifest["base"]["uri"] = uri
        assert title(manifest, evaluation).startswith(f"{name}: dass, 50 %")


def test_the_rows_are_what_the_pictures_show(finished: Workspace) -> None:
    manifest, _, _ = records_of(finished)
    rows = read_json(finished.metrics / "layers.json")
    assert rows == layer_rows(manifest)
    assert [row["layer"] for row in rows] == list(range(LAYERS))
    for row, layer in zip(rows, manifest["layers"], strict=True):
        assert row["output_error"] == pytest.approx(layer["relative_error"], rel=1e-5)
        assert {name: row[name] for name in layer["sparsity"]} == layer["sparsity"]
    for row, norm in zip(read_json(finished.metrics / "norms.json"), norms_of(finished), strict=True):
        assert row["largest"] == pytest.approx(float(norm.max()), rel=1e-5)
        assert row["smallest"] <= row["p05"] <= row["p25"] <= row["median"] <= row["p75"] <= row["p95"]


def test_the_summary_has_few_columns_with_the_records_figures(finished: Workspace) -> None:
    manifest, evaluation, tasks = records_of(finished)
    found = read_json(finished.metrics / "summary.json")
    assert list(found) == [
        *("perplexity", "dense_perplexity", "ratio", "kl", "top1_agreement", "mlp_sparsity", "worst_layer_error"),
    ]
    assert found["ratio"] == pytest.approx(evaluation["ratio"], rel=1e-5)
    assert found["worst_layer_error"] == pytest.approx(max(x["relative_error"] for x in manifest["layers"]), rel=1e-5)
    asked = {"tasks": {"piqa": {"metric": "acc", "pruned": {"acc": 0.61}}}}
    more = summary({**evaluation, "divergence": None, "texts": {"code": {"ratio": 2.5}}}, asked, manifest)
    assert (more["kl"], more["ratio_code"], more["task_piqa"]) == (None, 2.5, 0.61)
    dense = [{**layer, "relative_error": None} for layer in manifest["layers"]]
    assert summary(evaluation, tasks, {**manifest, "layers": dense})["worst_layer_error"] is None


def test_the_median_norm_of_every_layer_is_drawn_on_a_log_axis(finished: Workspace) -> None:
    manifest = read_json(finished.masks / "manifest.json")
    [axes] = norms_figure(manifest, norms_of(finished)).axes
    assert axes.get_yscale() == "log"
    for drawn, norm in zip(heights(axes), norms_of(finished), strict=True):
        below = float((norm <= drawn).double().mean())
        assert 0.45 < below < 0.55
    assert "192 tokens" in axes.get_ylabel()


def test_dead_neurons_do_not_stretch_the_axis(finished: Workspace, settings: Settings) -> None:
    norms = norms_of(finished)
    least = min(float(norm.min()) for norm in norms)
    norms[1][:3] = 0
    [axes] = norms_figure(read_json(finished.masks / "manifest.json"), norms).axes
    assert axes.get_ylim()[0] >= least / 2


@pytest.mark.parametrize("dead", ["one layer", "every layer"])
def test_layers_without_any_activation_are_drawn(finished: Workspace, settings: Settings, dead: str) -> None:
    statistics = load_file(finished.masks / "statistics.safetensors")
    for name in statistics:
        if dead == "every layer" or name.startswith("layers.0."):
            statistics[name].zero_()
    save_file(statistics, finished.masks / "statistics.safetensors")
    draw_plots(finished, settings)


@pytest.mark.parametrize(("file", "stage"), [("evaluation", "evaluate"), ("tasks", "tasks")])
def test_plots_without_measures_are_refused(finished: Workspace, settings: Settings, file: str, stage: str) -> None:
    (finished.metrics / f"{file}.json").unlink()
    with pytest.raises(InputError, match=rf"No .*{file}\.json\. Run: dass run, or dvc repro {stage}$"):
        draw_plots(finished, settings)


def test_plots_without_masks_are_refused(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(InputError, match=r"No .*manifest\.json\. Run: dass run, or dvc repro prune"):
        draw_plots(Workspace(tmp_path), settings)
    assert not (tmp_path / "plots").exists()
