"""What a run costs, stage by stage: bytes, operations and seconds, on one GPU, a machine of eight, and eight machines.

    python -m benchmarks.run_cost [--gpus 1 8 64]     the tables, for LLaMA-2-7B, LLaMA-3-70B and LLaMA-3.1-405B
    python -m benchmarks.run_cost --measure           how fast this machine's processor does each kind of work, first

    seconds of a stage = products / rate ÷ GPUs (where windows are shared) + device memory moved / its rate
                         + bytes read and written / disk + bytes digested / rate + mask bits packed / rate
    in prune, on a GPU, the next layer is read meanwhile: the longer of the two counts

What a GPU and a disk give is assumed (`benchmarks.scaling.ASSUMED`). What one core of the host does alone, packing
masks and digesting files, is measured (benchmarks/results/run_cost.json). With the same measurements the model says
what `benchmarks.shape_7b` should have taken on a CPU, beside what it did take.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import LlamaConfig

from benchmarks import command, markdown
from benchmarks.flops import attention_flops, layer_flops, mlp_flops
from benchmarks.paths import RESULTS
from benchmarks.random_checkpoint import llama_2_7b, llama_config
from benchmarks.results import Record, Results
from benchmarks.scaling import ASSUMED, LOGIT_PASSES, SCORE_PASSES, WIKITEXT, Machine, Tokens
from dass.errors import InputError
from dass.files import read_json
from dass.masks.packing import pack_mask, unpack_mask
from dass.method.mask import keep_mask
from dass.method.pattern import parse_pattern
from dass.method.scores import Scores

GPUS_A_MACHINE = 8
_FLOAT32, _BFLOAT16 = 4, 2


@dataclass(frozen=True)
class Host:
    """What one core of a processor does, a second.

    Attributes:
        packed: mask entries packed into bits or unpacked.
        digested: bytes that go through sha256.
        chosen: weights that a mask is chosen among.
        operations: of products in bfloat16.
        moved: bytes read or written, by the disk.
    """

    packed: float
    digested: float
    chosen: float
    operations: float
    moved: float


@dataclass(frozen=True)
class Stage:
    """What one stage has to do.

    Attributes:
        operations: of matrix products.
        memory: bytes moved in the device's memory.
        read, written: bytes on the disk; `read` by every machine that takes part.
        digested: bytes.
        packed: mask entries packed or unpacked.
        is_shared: whether the processes share the operations.
    """

    operations: float = 0.0
    memory: float = 0.0
    read: float = 0.0
    written: float = 0.0
    digested: float = 0.0
    packed: float = 0.0
    is_shared: bool = False


def llama_70b() -> LlamaConfig:
    """LLaMA-3-70B's shape; LLaMA-2-70B's but for its 32,000 words."""
    return llama_config(80, 8192, 28672, 64, 128256, 8192, key_heads=8)


def llama_405b() -> LlamaConfig:
    """LLaMA-3.1-405B's shape."""
    return llama_config(126, 16384, 53248, 128, 128256, 8192, key_heads=8)


MODELS = {"LLaMA-2-7B": llama_2_7b, "LLaMA-3-70B": llama_70b, "LLaMA-3.1-405B": llama_405b}


def mlp_weights(config: LlamaConfig) -> int:
    """Of all layers."""
    return 3 * config.num_hidden_layers * config.hidden_size * config.intermediate_size


def stored_weights(config: LlamaConfig) -> int:
    """Of the whole model, embeddings untied."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    keys = hidden // config.num_attention_heads * (config.num_key_value_heads or config.num_attention_heads)
    attention = 2 * hidden * hidden + 2 * hidden * keys
    norms = (2 * layers + 1) * hidden
    return layers * attention + mlp_weights(config) + norms + 2 * config.vocab_size * hidden


def work_of(config: LlamaConfig, tokens: Tokens) -> dict[str, Stage]:
    """The stages of `dass run` behind the base's fetching, DaSS unstructured, `register.artifact: checkpoint`."""
    layers, stored, mlp = config.num_hidden_layers, _BFLOAT16 * stored_weights(config), mlp_weights(config)
    in_layers = stored - _BFLOAT16 * 2 * config.vocab_size * config.hidden_size
    pruning = sum(
        layer_flops(config, tokens.windows, tokens.length, is_last=index == layers - 1) for index in range(layers)
    )
    windows, length = tokens.held_out, tokens.held_out_length
    forward = layers * (attention_flops(config, windows, length) + mlp_flops(config, windows, length, 3))
    logits = windows * length * config.vocab_size
    measured = forward + 2 * logits * config.hidden_size
    return {
        "baseline": Stage(measured, _FLOAT32 * logits * LOGIT_PASSES, read=stored),
        "prune": Stage(
            pruning,
            _FLOAT32 * mlp * SCORE_PASSES,
            read=in_layers,
            written=mlp / 8,
            packed=mlp,  # once: they are gathered, counted and digested as they lie
            is_shared=True,
        ),
        "materialize": Stage(read=stored, written=stored, digested=stored, packed=mlp),
        # read once to be run and once to have its zeros counted, as the base's MLPs are
        "evaluate": Stage(measured, _FLOAT32 * logits * LOGIT_PASSES, read=2 * stored + _BFLOAT16 * mlp),
        # one read gives the signature's digest and says that nothing changed; the files get second names, not copies
        "register": Stage(read=stored, digested=stored),
    }


def seconds_of(stage: Stage, machine: Machine, host: Host, gpus: int, windows: int) -> float:
    """How long a stage takes.

    Args:
        stage: its work.
        machine: a GPU, and the disks.
        host: one process of its processor.
        gpus: how many there are.
        windows: that they share: a GPU takes whole ones.
    """
    machines = math.ceil(gpus / GPUS_A_MACHINE) if stage.is_shared else 1
    share = math.ceil(windows / gpus) / windows if stage.is_shared else 1.0
    computing = stage.operations * share / machine.operations + stage.memory / machine.memory
    disk = min(machine.disk, machine.shared / machines)
    alone = stage.written / disk + stage.digested / host.digested + stage.packed / host.packed
    reading = stage.read / disk
    return alone + (max(computing, reading) if stage.is_shared else computing + reading)


def seconds_on_cpu(config: LlamaConfig, windows: int, length: int, host: Host, cores: int) -> dict[str, float]:
    """`dass.prune_checkpoint` on a processor, by kind of work: nothing is read ahead there, nothing is measured."""
    stages = work_of(config, Tokens(windows, length, 1, 1))
    both = [stages["prune"], stages["materialize"]]
    return {
        "products": stages["prune"].operations / (cores * host.operations),
        "choosing": mlp_weights(config) / (cores * host.chosen),
        "packing": 2 * mlp_weights(config) / host.packed,  # into each layer's file, and to be applied
        "digests": sum(each.digested for each in both) / host.digested,
        "disk": sum(each.read + each.written for each in both) / host.moved,
    }


def work_table() -> str:
    """Bytes and operations of every stage: what no machine changes."""
    rows = []
    for name, config in MODELS.items():
        for stage, work in work_of(config(), WIKITEXT).items():
            figures = (work.operations / 1e15, work.read / 1e9, work.written / 1e9, work.digested / 1e9)
            rows.append([f"{name}: {stage}", *(f"{each:,.1f}" for each in figures), f"{work.packed / 1e9:,.1f}"])
    header = ["stage", "PFLOP", "GB read", "GB written", "GB digested", "G mask entries packed"]
    return markdown.table(header, rows)


def time_table(gpus: Sequence[int], host: Host, machine: Machine = ASSUMED) -> str:
    """Seconds of every stage with so many GPUs, eight a machine."""
    rows = []
    for name, config in MODELS.items():
        shape, work = config(), work_of(config(), WIKITEXT)
        for count in gpus:
            took = {stage: seconds_of(each, machine, host, count, WIKITEXT.windows) for stage, each in work.items()}
            total = sum(took.values())
            hidden = math.ceil(WIKITEXT.windows / count) * WIKITEXT.length * shape.hidden_size * _BFLOAT16
            rows.append(
                [
                    f"{name}, {count}",
                    *(_minutes(each) for each in took.values()),
                    _minutes(total),
                    f"{count * total / 3600:.1f}",
                    markdown.gigabytes(hidden),
                ]
            )
    header = ["model, GPUs", *work_of(llama_2_7b(), WIKITEXT), "run", "GPU hours", "hidden states a GPU"]
    return markdown.table(header, rows)


def check_table(host: Host, measured: Sequence[Record]) -> str:
    """What the model says that 7B's shape takes on a CPU, beside what it took."""
    rows = []
    for each in measured:
        if each["pattern"] != "unstructured":  # what the model is made for
            continue
        parts = seconds_on_cpu(llama_2_7b(each["layers"]), each["windows"], each["length"], host, cores=2)
        said = sum(parts.values())
        told = [markdown.seconds(value) for value in parts.values()]
        took = each["seconds"]
        rows.append([str(each["layers"]), *told, markdown.seconds(said), markdown.seconds(took), f"{took / said:.2f}"])
    header = ["layers", "products", "choosing", "packing", "digests", "disk", "said", "measured", "measured / said"]
    return markdown.table(header, rows)


def measure(rows: int = 11008, columns: int = 1024, tokens: int = 512) -> Record:
    """How fast one core of this machine is, each the best of three: columns as long as those of 7B's gate, 512 tokens.

    In processor time, which other work on the machine does not lengthen.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    weight_IH = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).bfloat16()
    scores, half = Scores(weight_IH, ((0, torch.rand(rows)),), of_weights=True), parse_pattern("unstructured")
    keep = keep_mask(scores, half, 0)
    packed, data, size = pack_mask(keep), weight_IH.view(torch.int16).numpy().tobytes(), keep.numel()
    x_TH = torch.rand(tokens, columns).bfloat16()

    def rate(amount: float, work: Callable[[], object]) -> float:
        took = []
        for _ in range(3):
            began = time.process_time()
            work()
            took.append(time.process_time() - began)
        return amount / min(took)

    rates = {
        "packed": rate(2 * size, lambda: (pack_mask(keep), unpack_mask(packed, keep.shape))),
        "digested": rate(len(data), lambda: hashlib.sha256(data).digest()),
        "chosen": rate(size, lambda: keep_mask(scores, half, 0)),
        "operations": rate(2 * tokens * size, lambda: x_TH @ weight_IH.T),
    }
    torch.set_num_threads(threads)
    return rates


MOVED = 400e6
"""Bytes a second of a small machine's disk: assumed, as `dass run --dry-run` does before it knows better."""


def host_of(record: Record) -> Host:
    """A measurement, with what is assumed of the disk."""
    packed, digested, chosen, operations = (record[name] for name in ("packed", "digested", "chosen", "operations"))
    return Host(packed, digested, chosen, operations, MOVED)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else markdown.seconds(seconds)


def main() -> None:
    parser = command.parser(__doc__, "run_cost.json")
    parser.add_argument("--gpus", type=int, nargs="+", default=(1, 8, 64))
    parser.add_argument("--measure", action="store_true", help="measure this machine's processor first")
    arguments = parser.parse_args()
    if min(arguments.gpus) < 1:
        raise InputError("--gpus: expected numbers of 1 or more.")
    if arguments.measure:
        key = {"what": "host"}
        results = Results(arguments.results, fresh=True)
        print(results.add(key, measure()), flush=True)
    if not arguments.results.exists():
        raise InputError(f"No {arguments.results}. Run: python -m benchmarks.run_cost --measure")
    host = host_of(read_json(arguments.results)["records"][0])
    print(f"{work_table()}\n\n{time_table(arguments.gpus, host)}\n\n{ASSUMED}, {host}\n")
    print(check_table(host, read_json(RESULTS / "shape_7b.json")["records"]))


if __name__ == "__main__":
    command.run(main)
