"""Perplexity of every method with every update and pattern: the first table of docs/results.md.

    python -m benchmarks.quality [--params PARAMS] [--methods ...] [--updates ...] [--patterns ...]

Each cell prunes in memory, checks that the zeros are the masks', and measures the held-out windows. What the results
file holds is not measured again, so an interrupted table goes on. `python -m benchmarks.render` writes the page.
"""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

import dass
from benchmarks import command, markdown
from benchmarks.paths import FOLDER, ROOT
from benchmarks.perplexity import prepare
from benchmarks.results import Record, Results
from dass.files import read_json
from dass.measures.losses import mean_loss
from dass.model.pretrained import load_model
from tasks.workspace.settings import load_settings

METHODS = ("dass", "wanda", "magnitude", "sparsegpt")
UPDATES = ("none", "reconstruct", "reconstruct-mlp")
PATTERNS: dict[str, dict[str, Any]] = {
    "50 %": {"pattern": "unstructured", "sparsity": 0.5},
    "4:8": {"pattern": "4:8"},
    "2:4 paper": {"pattern": "2:4"},
    "2:4 transposable": {"pattern": "2:4", "layout": "transposable"},
}
_BATCH_TOKENS = 4096
_NOTES = """`reconstruct` re-fits each matrix in closed form, down_proj to what the dense MLP put out; `reconstruct-mlp`
then trains the three matrices of an MLP together. Both see the calibration windows only and can over-fit them.

In `2:4 paper` only down_proj has the groups that 2:4 kernels of sparse tensor cores want; in `2:4 transposable` all
three have."""


def measure(base: Path, input_ids: Tensor, windows: Tensor, method: str, update: str, pattern: str) -> Record:
    """Prune in memory, check, measure."""
    model = load_model(base)
    report = dass.prune(model, input_ids, method, update=update, **PATTERNS[pattern])
    check_zeros(model, report.keep)
    return {
        "perplexity": math.exp(mean_loss(model, windows, _BATCH_TOKENS)),
        "mask_sparsity": report.sparsity,
        "seconds": sum(layer.seconds for layer in report.layers),
    }


def check_zeros(model: PreTrainedModel, keep: dict[str, Tensor]) -> None:
    """Raise AssertionError unless every removed weight is +0.0 and every mask removes half."""
    weights = model.state_dict()
    for name, mask in keep.items():
        assert int(mask.count_nonzero()) * 2 == mask.numel(), name
        removed = weights[name][~mask]
        assert not removed.any(), name
        assert not torch.signbit(removed).any(), name


def section(records: list[Record]) -> str:
    """The table as markdown, from the records of one model and of what is left of it."""
    dense = next(each for each in records if each["method"] == "dense")
    records = [each for each in records if each is not dense]
    found = {(each["method"], each["update"], each["pattern"]): each for each in records}

    def cell(method: str, update: str, pattern: str) -> str:
        record = found.get((method, update, pattern))
        return "not measured" if record is None else f"{record['perplexity']:.2f}"

    rows = [
        [f"{method}, {update}", *(cell(method, update, pattern) for pattern in PATTERNS)]
        for method in METHODS
        for update in UPDATES
    ]
    best = {pattern: _best(records, pattern) for pattern in PATTERNS}
    told = [
        f"- {pattern}: {each['method']} with update {each['update']}, {each['perplexity']:.2f}, "
        f"{each['perplexity'] / dense['perplexity']:.2f} × dense."
        for pattern, each in best.items()
        if each is not None
    ]
    introduction = (
        f"Perplexity of {dense['model']} with half of all MLP weights removed, by method, update of the weights that "
        f"stay and pattern. Dense: {dense['perplexity']:.2f}. {dense['windows']} held-out windows of "
        f"{dense['context_length']} tokens, bfloat16, calibration as in `params.yaml`. Made by:"
    )
    parts = [
        introduction,
        "```sh\npython -m benchmarks.quality\n```",
        markdown.table(["method, update", *PATTERNS], rows),
        "Best of each pattern:",
        "\n".join(told),
        _NOTES,
    ]
    return "\n\n".join(parts)


def _best(records: list[Record], pattern: str) -> Record | None:
    return min(
        (each for each in records if each["pattern"] == pattern), key=lambda each: each["perplexity"], default=None
    )


def main() -> None:
    parser = command.parser(__doc__, "quality.json")
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--updates", nargs="+", choices=UPDATES, default=UPDATES)
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    arguments = parser.parse_args()
    name = load_settings(arguments.params).register_.model
    workspace = prepare(arguments.params, FOLDER / name)
    input_ids = load_file(workspace.calibration / "tokens.safetensors")["input_ids"]
    windows = load_file(workspace.evaluation / "tokens.safetensors")["input_ids"]
    results = Results(arguments.results, arguments.fresh)
    unpruned = {"model": name, "method": "dense"}
    if results.find(unpruned) is None:
        dense = read_json(workspace.evaluation / "dense.json")
        results.add(unpruned, {what: dense[what] for what in ("perplexity", "windows", "context_length")})
    for update in arguments.updates:
        for pattern in arguments.patterns:
            for method in arguments.methods:
                key = {"model": name, "method": method, "update": update, "pattern": pattern}
                if results.find(key) is None:
                    figures = measure(workspace.base, input_ids, windows, method, update, pattern)
                    print(results.add(key, figures), flush=True)


if __name__ == "__main__":
    command.run(main)
