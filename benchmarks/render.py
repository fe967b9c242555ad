"""Writes docs/benchmarks.md and docs/results.md from what was measured. Holds no figure of its own.

python -m benchmarks.render
"""

import argparse
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import (
    allocations,
    block_memory,
    command,
    cost,
    digests,
    evaluation,
    gpu,
    growth,
    many_masks,
    peers,
    quality,
    recovery,
    refits,
    registry,
    shape_7b,
    speed,
)
from benchmarks.paths import RESULTS, ROOT
from benchmarks.results import Record
from dass.errors import InputError
from dass.files import read_json

PAGE, QUALITY_PAGE = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "results.md"
_INTRODUCTION = """# Benchmarks

Made by `python -m benchmarks.render` from `benchmarks/results`, which `make bench-peers`, `make bench` and, on a
machine with a GPU, `make bench-gpu` fill.

The reference is the published layer-wise procedure written the plain way (`benchmarks/reference.py`): model in memory
in float32, one window at a time, a hook on every linear, two full passes a layer, a full sort for every mask. The
engine streams the same checkpoint. Half of the MLP weights go, unstructured. Every run is a process of its own; its
clock starts after imports and stops when the pruned checkpoint is on disk, and its memory is the most that was ever
resident, Python and libraries included."""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        results: name of the JSON file.
        command: what measures it.
        tables: makes its tables of the file's records.
        note: what a reader must know to read the tables.
    """

    title: str
    results: str
    command: str
    tables: Callable[[list[Record]], str]
    note: str


SECTIONS = (
    Section(
        "Engine and llm-compressor",
        "peers.json",
        "python -m benchmarks.peers",
        peers.tables,
        "Wanda on the MLPs, from the checkpoint on disk to the pruned one written, on the CPU. In each turn the "
        "reference, llm-compressor (`oneshot` with its WandaPruningModifier and its own defaults, in an environment "
        "of its own: `make bench-peers`) and the engine run one after the other on the same tokens, in every other "
        "turn in reverse order; torch is asked for huge pages in all of them. A ratio is that to llm-compressor in "
        "the same type, taken inside each turn: the median of the turns, the least and the greatest. The floor is the "
        "time that the matrix products of the engine's algorithm take (`benchmarks/flops.py`) at the highest rate "
        "that this machine reached on the model's own shapes before and after them. Removed: zeros among the MLP "
        "weights, those of the base included. Same masks: weights that are zero in the engine's checkpoint of the "
        "same type too, or in neither, in the turn with the fewest; two unrelated masks agree on half. llm-compressor "
        "reads its tokenizer before the clock starts, holds the model in the type that it computes in, and writes "
        "that type; the engine writes the base's own, bfloat16, and waits until the disk has it.",
    ),
    Section(
        "Engine against the published procedure",
        "speed.json",
        "python -m benchmarks.speed",
        speed.tables,
        "Reference and engine run in turn. Times and memory are medians over the turns; a ratio (engine / reference) "
        "is taken inside each turn, and the median of the ratios is shown. Magnitude needs no calibration data; both "
        "sides run their passes all the same, the engine for its report of norms and errors.",
    ),
    Section(
        "Growth with layers and tokens",
        "growth.json",
        "python -m benchmarks.growth",
        growth.tables,
        "Random LLaMA checkpoints of one width, DaSS: time and peak memory, medians.",
    ),
    Section(
        "Many masks from one pass",
        "many_masks.json",
        "python -m benchmarks.many_masks",
        many_masks.table,
        "Propagation dense: norms are collected in one pass through the dense model; methods, patterns and alphas then "
        "make their masks from them without a token.",
    ),
    Section(
        "Evaluation against a plain loop",
        "evaluation.json",
        "python -m benchmarks.evaluation",
        evaluation.table,
        "Perplexity of the dense model over the same windows. The plain loop asks for all logits of a batch and for "
        "their cross entropy; the fastest of all batch sizes and thread counts is shown. The floor is what the counted "
        "matrix products would take at the rate that this machine reaches on each of them alone. Medians over turns; a "
        "ratio is of two that ran in the same turn.",
    ),
    Section(
        "Steps of recovery",
        "recovery.json",
        "python -m benchmarks.recovery",
        recovery.table,
        "The product's training loop, the dense model beside the student, MLPs and norms trained in bfloat16 products. "
        "The floor is what the counted matrix products, forward and backward, would take at the rate that this machine "
        "reaches on each of the model's matrices alone. Medians over turns.",
    ),
    Section(
        "LLaMA-2-7B's shape on the CPU",
        "shape_7b.json",
        "python -m benchmarks.shape_7b",
        shape_7b.table,
        "Random bfloat16 weights in shards of 1 GB, streamed; DaSS, half of the weights. Growth is that of peak memory "
        "over the row above of the same pattern. The time is one run's, from the first weight read to the pruned "
        "checkpoint synced to disk.",
    ),
    Section(
        "Memory of re-fits to the whole block's target",
        "block_memory.json",
        "python -m benchmarks.block_memory",
        block_memory.table,
        "The layers of LLaMA-3.2-1B with random weights, streamed; DaSS with update reconstruct-block, computed in "
        "float32. One epoch, and one step of conjugate gradients in the closed forms before it: more of either takes "
        "time, not memory. Two buffers: hidden states of the pruned and of the dense model. A layer's MLP: its three "
        "matrices once in float32. Growth is that of peak memory over the row above.",
    ),
    Section(
        "Reads of model-sized files",
        "digests.json",
        "python -m benchmarks.digests",
        digests.table,
        "Layers of LLaMA-2-7B's width with random weights and a small vocabulary, by the product's own functions with "
        "DVC, artifact checkpoint, the store on the same machine: what the kernel counts as read, from the disk or its "
        "cache, over the size of the model. A digest that is read for adds one.",
    ),
    Section(
        "A large registry",
        "registry.json",
        "python -m benchmarks.registry",
        registry.table,
        "Each command in a process of its own on the workspace's own store, its start counted. The product made the "
        "store: a tiny random model pruned with other settings again and again, every result registered (masks only), "
        "then entries of proofs. Promotions prove the version first, and each has another version become champion. "
        "CPU is that of all of the command's processes; on a machine that does other work, time is longer than it.",
    ),
    Section(
        "LLaMA-2-7B's shape on a GPU",
        "gpu.json",
        "python -m benchmarks.gpu",
        gpu.tables,
        "A layer: weights read from disk, masks found, pruned layer run; median. Rate: operations that the algorithm "
        "needs (`benchmarks/flops.py`, norms and masks not counted) over the time of all layers, beside the rate of "
        "large bfloat16 products on the same card. Kernels: `torch.sparse.to_sparse_semi_structured`, bfloat16, on 2:4 "
        "DaSS masks.",
    ),
)
_COST = (
    "Each row is one `dass run` (`python -m benchmarks.cost`), computed in float32. The KL divergence of the pruned "
    "model's predictions from the dense one's and the shares of tokens are those of the first 4,096 tokens of the "
    "evaluation text; the ratio's interval is a paired bootstrap over its windows. Tasks are lm_eval's, zero-shot, on "
    "the first documents of the files named below: accuracy ± 1.96 standard errors, the difference with its paired "
    "bootstrap interval in points, documents that only the dense (lost) or only the pruned model (gained) has right, "
    "and the exact two-sided p-value of McNemar's test."
)
_ALLOCATIONS = (
    "Under one total some matrices take more than others. Sensitivity: the least sum of the divergences of the whole "
    "model with one matrix pruned alone, solved exactly; guess: the same with each matrix's own relative output error, "
    "which costs no walk through the model. Uniform and OWL at 2:4 prune whole matrices until the total is reached, "
    "spread over the depth or in layers with the fewest outliers. Divergences that choose are taken on calibration "
    "windows, those of the table on held-out ones."
)
_NO_GPU = "Not measured: no GPU was at hand. `make bench-gpu` on a machine with one fills this section."


def page(folder: Path) -> str:
    """The whole page as markdown, from the results in `folder`.

    Raises:
        InputError: nothing was measured yet.
    """
    if not any((folder / section.results).exists() for section in SECTIONS):
        raise InputError(f"No results in {folder}. Run: make bench")
    return "\n\n".join([_INTRODUCTION, *(_section(section, folder) for section in SECTIONS)]) + "\n"


def quality_page(folder: Path) -> str:
    """docs/results.md as markdown: what the methods cost in quality, from the results in `folder`."""
    perplexities, costs = read_json(folder / "quality.json"), read_json(folder / "cost.json")
    return (
        "\n\n".join(
            [
                "# Results",
                quality.section(perplexities["records"]),
                *_measured("What re-fits and recovery bring back", folder / "refits.json", refits.section),
                "## What it cost besides perplexity",
                textwrap.fill(_COST, width=120),
                cost.section(costs["records"]),
                _provenance(costs),
                *_measured("Which matrices are spared", folder / "allocations.json", allocations.section, _ALLOCATIONS),
            ]
        )
        + "\n"
    )


def _measured(title: str, file: Path, section: Callable[[list[Record]], str], note: str = "") -> list[str]:
    """A part of the page; nothing where it was not measured."""
    if not file.exists():
        return []
    content = read_json(file)
    told = [textwrap.fill(note, width=120)] if note else []
    return [f"## {title}", *told, section(content["records"]), _provenance(content)]


def _section(section: Section, folder: Path) -> str:
    heading, file = f"## {section.title}", folder / section.results
    if file.exists():
        content: dict[str, Any] = read_json(file)
        note = textwrap.fill(section.note, width=120, break_on_hyphens=False)
        return "\n\n".join([heading, note, section.tables(content["records"]), _provenance(content)])
    if section.tables is not gpu.tables:
        return f"{heading}\n\nNot measured yet: `{section.command}`."
    dry_run = _dry_run(file.with_stem(f"{file.stem}-dry-run"))
    return f"{heading}\n\n{textwrap.fill(_NO_GPU + dry_run, width=120)}"


def _dry_run(file: Path) -> str:
    if not file.exists():
        return ""
    content = read_json(file)
    return (
        f" On {_days(content['records'])} the same code passed on the CPU at a small size "
        f"(`{content['commands'][-1]}`, commit {content['records'][-1]['commit']})."
    )


def _provenance(content: dict[str, Any]) -> str:
    machine, records = content["environment"], content["records"]
    commits = ", ".join(dict.fromkeys(record["commit"] for record in records))
    gpu_name = f", {machine['gpu']}" if machine["gpu"] else ""
    return (
        f"{_days(records)}, {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB{gpu_name}, "
        f"torch {machine['torch']}, transformers {machine['transformers']}, Python {machine['python']}, "
        f"commit {commits}:\n\n```sh\n" + "\n".join(content["commands"]) + "\n```"
    )


def _days(records: list[Record]) -> str:
    days = sorted({record["when"][:10] for record in records})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the results are")
    arguments = parser.parse_args()
    for path, content in ((PAGE, page(arguments.folder)), (QUALITY_PAGE, quality_page(arguments.folder))):
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    command.run(main)
