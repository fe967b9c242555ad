"""Tokens a second that recovery trains on, and the share of what the machine's matrix products would allow.

    python -m benchmarks.recovery [--params params.yaml ...] [--dtype bfloat16] [--turns 3] [--steps 3]

Steps of the product's own training loop, teacher beside student, MLPs and norms trained, on the model's calibration
windows; masks are 2:4 by magnitude, for a step costs the same whatever was removed. Reading models, the first step and
the last, which writes a state, are not timed. In each turn the machine's rate on the model's own matrices is measured
as well: the counted operations, forward and backward, at that rate are the floor.
"""

import re
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import command, markdown
from benchmarks.flops import forward_shapes, recovery_flops
from benchmarks.paths import FOLDER, ROOT
from benchmarks.prepare import prepare_base
from benchmarks.results import Record, Results
from benchmarks.speed import DTYPES
from benchmarks.timing import shapes_rate
from dass.masks.mask_file import MASKS, MaskFile, save_masks
from dass.masks.updates import Updates
from dass.method.mask import keep_mask
from dass.method.pattern import parse_pattern
from dass.model.checkpoint import Checkpoint
from dass.model.pretrained import load_model
from dass.recovery.loop import Recovery
from dass.recovery.recipe import Recipe
from dass.recovery.student import Student
from dass.recovery.teacher import LiveTeacher
from tasks.workspace.settings import load_settings


def table(records: list[Record]) -> str:
    """One row a model, type and size of a step: medians over turns."""
    header = ["model, products in", "ids", "tokens a step", "seconds a step", "tokens/s", "of the floor"]
    rows = []
    what = ("model", "dtype", "vocabulary", "step_tokens")
    for key in dict.fromkeys(tuple(each[name] for name in what) for each in records):
        own = [each for each in records if tuple(each[name] for name in what) == key]
        model, dtype, vocabulary, tokens = key
        seconds = median(each["seconds"] for each in own)
        shares = [each["flops"] / each["rate"] / each["seconds"] for each in own]
        rows.append(
            [
                f"{model}, {dtype}",
                f"{vocabulary:,}",
                f"{tokens:,}",
                f"{seconds:.1f} s",
                f"{tokens / seconds:.0f}",
                f"{median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})",
            ]
        )
    return markdown.table(header, rows)


def main() -> None:
    parser = command.parser(__doc__, "recovery.json")
    parser.add_argument("--params", type=Path, nargs="+", default=[ROOT / "params.yaml"], help="one a model")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bfloat16"], help="of the products")
    parser.add_argument("--step-tokens", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--steps", type=int, default=3, help="timed in a turn")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    results = Results(arguments.results, arguments.fresh)
    for params in arguments.params:
        name = load_settings(params).register_.model
        workspace = prepare_base(params.resolve(), FOLDER / name)
        windows_WL = load_file(workspace.calibration / "tokens.safetensors")["input_ids"]
        for turn in range(arguments.turns):
            for dtype in arguments.dtype:
                for tokens in arguments.step_tokens:
                    key: Record = {"model": name, "dtype": dtype, "step_tokens": tokens, "turn": turn}
                    if results.find(key) is None:
                        found = measure(workspace.base, windows_WL, dtype, tokens, arguments.steps)
                        print(results.add(key, found), flush=True)


def measure(base: Path, windows_WL: Tensor, dtype: str, step_tokens: int, steps: int) -> Record:
    """Seconds of a step, the operations counted in it, and the rate that the machine has on the model's matrices."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipe = Recipe(
            steps=steps + 2,  # the first warms up, the last writes a state
            step_tokens=step_tokens,
            batch_tokens=step_tokens,
            validation_share=0.0,
            evaluate_every=steps + 2,
            checkpoint_every=steps + 2,
        )
        kind = getattr(torch, dtype)
        teacher = LiveTeacher(load_model(base, kind), windows_WL[0], recipe.temperature, with_layers=False)
        save_masks(_masks(base), folder / MASKS)
        masks = MaskFile(folder / MASKS)
        student = Student(load_model(base, torch.float32), Checkpoint(base), masks, Updates([]), recipe.train)
        autocast = None if kind is torch.float32 else kind
        recovery = Recovery(student, teacher, windows_WL, recipe, folder / "states", autocast=autocast)
        ends: list[float] = []
        recovery.run(lambda _: ends.append(time.perf_counter()))
        config: Any = student.model.config.get_text_config()
    taken = [after - before for before, after in pairwise(ends)][:steps]
    windows, length = step_tokens // windows_WL.shape[1], windows_WL.shape[1]
    return {
        "vocabulary": config.vocab_size,
        "seconds": median(taken),
        "flops": recovery_flops(config, windows, length),
        "rate": shapes_rate(forward_shapes(config), kind),
    }


def _masks(base: Path) -> dict[str, Tensor]:
    checkpoint, half = Checkpoint(base), parse_pattern("2:4")
    names = [name for name in checkpoint.stored if re.search(r"\.mlp\.(gate|up|down)_proj\.weight$", name)]
    return {name: keep_mask(checkpoint.load([name])[name].abs(), half, 1) for name in names}


if __name__ == "__main__":
    command.run(main)
