"""What every study of a workspace works with: the base, calibration windows with their statistics, and a judge.

.dass/study/windows/DIGEST.safetensors        calibration windows of one source and seed
.dass/study/statistics/DIGEST/statistics_*    of the dense model, on some of them
.dass/study/records/DIGEST.json               one finished measurement
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dass.engine.dense import dense_statistics, load_statistics, make_from_statistics, save_statistics
from dass.engine.layerwise import Buffering, Wanted
from dass.engine.variants import Changed, Variant, Variants
from dass.engine.version import ENGINE_VERSION
from dass.errors import InputError
from dass.files import complete_file, digest_of, read_json, write_json
from dass.method.plan import DEFAULT_MIN_EXPERT_TOKENS, Plan
from dass.method.statistics import MlpStatistics, together
from dass.model.checkpoint import Checkpoint
from dass.model.streaming import StreamedDecoder
from tasks.calibration import MAIN_SET, windows_of_set
from tasks.evaluation.kept import TOKENS, windows_of
from tasks.evaluation.texts import MAIN
from tasks.sources.calibrated_on import SELF
from tasks.sources.pinned import pinned
from tasks.sources.tokens import digest_of_ids
from tasks.workspace.devices import choose_device, choose_dtype
from tasks.workspace.folder import Workspace
from tasks.workspace.redaction import source_name
from tasks.workspace.settings import Settings

_NORMS = Wanted(gram_x=False, gram_z=False, min_expert_tokens=DEFAULT_MIN_EXPERT_TOKENS)


@dataclass(frozen=True)
class Drawn:
    """Calibration windows of one source and seed.

    Attributes:
        name: of `tasks.calibration.set_names`.
        seed: what drew them.
        windows_WL: token ids, in an order that the seed shuffled, so that the first few are as random as all.
    """

    name: str
    seed: int
    windows_WL: Tensor


class Bench:
    """A workspace's base, ready to be studied.

    Attributes:
        model: what the base is called: as the models made from it are registered, whatever its file is called.
        parameters: how many it has.
        decoder: the base, whose layers are read when they are wanted.
    """

    def __init__(self, ws: Workspace, settings: Settings, windows: int) -> None:
        """Open the base and the held-out windows; nothing is computed yet.

        Args:
            ws: a workspace in which stage `baseline` has run.
            settings: its settings.
            windows: how many held-out windows variants are judged on, from the first.

        Raises:
            InputError: a stage has not run or is of other settings; there are not so many windows.
        """
        for needed in (ws.base / "source.json", ws.evaluation / TOKENS):
            if not needed.is_file():
                raise InputError(f"No {needed}: a study needs the base and the held-out text. {_MAKE}")
        source = read_json(ws.base / "source.json")
        if source["uri"] != settings.sources.model.uri:
            raise InputError(f"{ws.base} is {source_name(source['uri'])}, and sources.model another. {_MAKE}")
        self._ws, self._settings = ws, settings
        self.held_out_WL = windows_of(ws.evaluation, MAIN)
        if not 1 <= windows <= len(self.held_out_WL):
            raise InputError(
                f"--windows is {windows}: expected 1 to {len(self.held_out_WL)}, the held-out windows of "
                "evaluate.samples."
            )
        self.held_out_WL = self.held_out_WL[:windows]
        checkpoint = Checkpoint(ws.base)
        self.model = settings.register_.model.removesuffix("-dass")
        self.parameters = sum(math.prod(checkpoint.shape(name)) for name in checkpoint.stored)
        device = choose_device(settings.engine.device)
        self.decoder = StreamedDecoder(
            ws.base, device, choose_dtype(settings.engine.dtype, checkpoint.main_dtype, device)
        )
        tokens = settings.engine.batch_tokens
        self.buffering = Buffering(None if tokens == "auto" else tokens, settings.engine.hidden_states)
        self._made_by = {
            "version": ENGINE_VERSION,
            "base": source["digest"],
            "device": device.type,
            "dtype": str(self.decoder.dtype).removeprefix("torch."),
            "batch_tokens": tokens,
        }

    @property
    def folder(self) -> Path:
        """What studies of this workspace have measured."""
        return self._ws.private / "study"

    @cached_property
    def judge(self) -> Variants:
        """Judges variants on the held-out windows; sends the dense model's through them the first time."""
        return Variants(self.decoder, self.held_out_WL, self.buffering)

    def record(self, what: dict[str, Any], windows_WL: Tensor | None = None) -> Path:
        """The file of one measurement on some windows, there or not; None: on the held-out ones."""
        judged_on = digest_of_ids(self.held_out_WL if windows_WL is None else windows_WL)
        return self.folder / "records" / f"{digest_of({**self._made_by, 'judged_on': judged_on, **what})}.json"

    @property
    def about(self) -> dict[str, Any]:
        """What a study's record says of the model and of the windows that it is judged on."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "layers": len(self.decoder),
            "dtype": str(self.decoder.dtype).removeprefix("torch."),
            "device": self.decoder.device.type,
            "held_out_windows": len(self.held_out_WL),
            "held_out_length": self.held_out_WL.shape[1],
        }

    def draw(self, name: str, seed: int, samples: int) -> Drawn:
        """Calibration windows out of one source, kept for the next time.

        Raises:
            InputError: as `tasks.calibration.windows_of_set`.
        """
        asked = self._settings.calibration.model_copy(update={"samples": samples, "seed": seed})
        settings = self._settings.model_copy(update={"calibration": asked})
        told = asked.model_dump(mode="json", include={"samples", "sequence_length", "seed", "bos"})
        if name == SELF:
            told |= {"made_by": self._made_by, "temperature": asked.temperature, "top_k": asked.top_k}
        else:
            told |= {"pin": self.pin(name), "tokenizer": read_json(self._ws.base / "source.json")}
        path = self.folder / "windows" / f"{digest_of(told)}.safetensors"
        if not path.exists():
            windows_WL = windows_of_set(self._ws, settings, name)
            order_W = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
            with complete_file(path) as temporary:
                save_file({"input_ids": windows_WL[order_W].contiguous()}, temporary)
        return Drawn(name, seed, load_file(path)["input_ids"])

    def pin(self, name: str) -> dict[str, Any]:
        """What dass.lock.json says of a text that windows are drawn from.

        Raises:
            InputError: it says nothing of the text's uri.
        """
        settings = self._settings
        if name == MAIN_SET:
            return pinned(self._ws, "calibration", settings.sources.calibration)
        return pinned(self._ws, f"calibration_texts.{name}", settings.calibration.texts[name])

    def pieces(self, drawn: Drawn, sizes: Sequence[int]) -> dict[int, list[Path]]:
        """For each size, the folders of statistics that together are those of so many windows.

        The first windows of a larger size are the smaller one's: every window is looked at once.
        """
        cuts = [0, *sorted(set(sizes))]
        found: dict[int, list[Path]] = {}
        so_far: list[Path] = []
        for begin, end in pairwise(cuts):
            windows_WL = drawn.windows_WL[begin:end]
            so_far = [*so_far, self.statistics_folder(windows_WL)]
            found[end] = so_far
        return found

    def collect(self, windows_WL: Tensor, on_layer: Callable[[int], object]) -> None:
        """Take the dense model's statistics on some windows, unless they are there; `on_layer` hears of each layer."""
        folder, layers = self.statistics_folder(windows_WL), len(self.decoder)
        if all(layer_file(folder, index).exists() for index in range(layers)):
            on_layer(layers)
            return
        folder.mkdir(parents=True, exist_ok=True)
        for index, seen in enumerate(dense_statistics(self.decoder, windows_WL, _NORMS, buffering=self.buffering)):
            save_statistics(seen, layer_file(folder, index))
            on_layer(1)

    def variant(self, statistics: "Statistics", plans: Callable[[int], Plan | None]) -> Variant:
        """What plans, one a layer, make of the base by statistics that are there; None leaves a layer dense."""

        def change(index: int) -> Changed | None:
            what = plans(index)
            if what is None:
                return None
            made = make_from_statistics(self.decoder, index, statistics(index), what, what.pattern, what.score)
            return Changed(made.keep, made.values)

        return change

    def statistics(self, folders: Sequence[Path]) -> "Statistics":
        """What lies in several folders, a layer at a time, added up."""

        @cache
        def of_layer(index: int) -> dict[str, MlpStatistics]:
            parts = [load_statistics(layer_file(folder, index), self.decoder.device) for folder in folders]
            return {name: together([part[name] for part in parts]) for name in parts[0]}

        return of_layer

    def statistics_folder(self, windows_WL: Tensor) -> Path:
        """Where the dense model's statistics on some windows lie, or will."""
        digest = digest_of({**self._made_by, "windows": digest_of_ids(windows_WL), "wanted": _NORMS.min_expert_tokens})
        return self.folder / "statistics" / digest


Statistics = Callable[[int], dict[str, MlpStatistics]]
"""Those of a layer's MLPs, by full name."""

_MAKE = "Run: dass run --until baseline"


def layer_file(folder: Path, index: int) -> Path:
    """Statistics of one layer in a folder of them."""
    return folder / f"statistics_{index:03d}.safetensors"


def keep(path: Path, value: Any) -> None:
    """Write a finished measurement, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)
