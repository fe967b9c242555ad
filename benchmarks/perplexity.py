"""The README's table: perplexity of real models under every method and pattern, and what their masks keep.

    python -m benchmarks.perplexity [--params params.yaml ...] [--json FILE]

Each model is fetched, calibrated and measured as `dass run` does it. Every mask is checked on the way: exact share in
every competing group, kept bits unchanged.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import dass
from benchmarks.masks import check_bits, check_shares, zeros
from benchmarks.prepare import prepare_base
from dass.files import read_json
from dass.measures.losses import mean_loss
from dass.model.pretrained import load_model
from tasks.evaluation.stages import evaluate_dense
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import load_settings

METHODS = ("dass", "wanda", "magnitude")
PATTERNS = ("unstructured", "4:8", "2:4")
_BATCH_TOKENS = 4096


def prepare(params: Path, folder: Path) -> Workspace:
    """Fetch (unless that is done), calibrate and measure the dense model in `folder`."""
    workspace = prepare_base(params, folder)
    evaluate_dense(workspace, load_settings(params))
    return workspace


def measure(workspace: Workspace, method: str, pattern: str) -> dict[str, Any]:
    """Prune in memory, check the masks, measure."""
    model = load_model(workspace.base)
    base = {name: value.clone() for name, value in model.state_dict().items()}
    input_ids = load_file(workspace.calibration / "tokens.safetensors")["input_ids"]
    report = dass.prune(model, input_ids, method, pattern=pattern)
    check_shares(report.keep, method, pattern)
    check_bits(base, model.state_dict(), report.keep)
    windows = load_file(workspace.evaluation / "tokens.safetensors")["input_ids"]
    perplexity = math.exp(mean_loss(model, windows, _BATCH_TOKENS))
    return {
        "method": method,
        "pattern": pattern,
        "perplexity": perplexity,
        "mask_sparsity": report.sparsity,
        "zeros_base": zeros(base, report.keep),
        "zeros_pruned": zeros(model.state_dict(), report.keep),
        "seconds": sum(layer.seconds for layer in report.layers),
    }


def table(name: str, dense: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Markdown: one row a method, one column a pattern."""
    lines = [
        f"{name}: dense {dense['perplexity']:.2f} ({dense['windows']} windows of {dense['context_length']} tokens)",
        "",
        f"| method | {' | '.join(PATTERNS)} |",
        f"|---|{'---|' * len(PATTERNS)}",
    ]
    for method in METHODS:
        by_pattern = {row["pattern"]: row["perplexity"] for row in rows if row["method"] == method}
        lines.append(f"| {method} | {' | '.join(f'{by_pattern[pattern]:.2f}' for pattern in PATTERNS)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [Path("params.yaml"), Path("examples/gemma-3-270m/params.yaml")]
    parser.add_argument("--params", type=Path, nargs="+", default=default, help="one params.yaml per model")
    parser.add_argument("--folder", type=Path, default=Path(".dass/benchmarks"), help="where models are prepared")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    figures: dict[str, Any] = {}
    for params in arguments.params:
        name = load_settings(params).register_.model
        workspace = prepare(params.resolve(), arguments.folder.resolve() / name)
        dense = read_json(workspace.evaluation / "dense.json")
        rows = []
        for method in METHODS:
            for pattern in PATTERNS:
                rows.append(measure(workspace, method, pattern))
                print(json.dumps(rows[-1]), flush=True)
        figures[name] = {"dense": dense, "rows": rows}
        print("\n" + table(name, dense, rows) + "\n", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
