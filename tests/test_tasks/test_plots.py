from pathlib import Path

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
    before = {path.name: sha256_file(path) for path in finished.plots.iterdir()}
    draw_plots(finished, settings)
    assert {path.name: sha256_file(path) for path in finished.plots.iterdir()} == before
    assert set(before) == {"layers.png", "norms.png"}


def test_plots_are_pictures_of_a_readable_size(finished: Workspace) -> None:
    for name in ("layers.png", "norms.png"):
        height, width, _ = imread(finished.plots / name).shape
        assert width > 900
        assert height > 500


def test_sparsity_and_error_of_every_layer_are_drawn(finished: Workspace) -> None:
    manifest = read_json(finished.masks / "manifest.json")
    figure = layers_figure(manifest)
    above, below = figure.axes
    assert heights(above) == [0.5] * 3 * LAYERS
    assert heights(below) == [layer["relative_error"] for layer in manifest["layers"]]
    for words in ("dass, 50 % unstructured", "weights removed", "relative output error", "decoder layer", "gate_proj"):
        assert words in text_of(figure)


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


def test_plots_without_masks_are_refused(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(InputError, match=r"No .*manifest\.json\. Run: dass run, or dvc repro prune"):
        draw_plots(Workspace(tmp_path), settings)
    assert not (tmp_path / "plots").exists()
