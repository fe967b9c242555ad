"""One measured pruning run in a process of its own, so that its peak memory is its own.

The clock starts when everything is imported and stops when the pruned checkpoint is written: loading or streaming the
weights counts, imports do not.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.paths import ROOT

Side = Literal["engine", "reference", "peer"]


@dataclass(frozen=True)
class Job:
    """What to run: one checkpoint pruned at 50 %.

    Attributes:
        side: the engine, the published procedure, or another tool in an environment of its own.
        method: "dass", "wanda", "magnitude" or "sparsegpt".
        dtype: what is computed in, "float32" or "bfloat16".
        checkpoint: folder of the dense checkpoint.
        tokens: safetensors file with input_ids, LongTensor.
        windows: how many windows of it are used, the first ones.
        length: tokens a window, the first ones.
        pattern: "unstructured", or an N:M pattern that keeps half.
        update: what becomes of the weights that stay, on the engine's side.
        fewest_steps: re-fits end after one epoch and one step of conjugate gradients, which takes as much memory as
            all of them.
    """

    side: Side
    method: str
    dtype: str
    checkpoint: Path
    tokens: Path
    windows: int
    length: int
    pattern: str = "unstructured"
    update: str = "none"
    fewest_steps: bool = False


@dataclass(frozen=True)
class Measurement:
    """What a job took.

    Attributes:
        seconds: wall time from the first weight read to the pruned checkpoint written.
        peak_bytes: most resident memory the process ever had, pages of mapped files included.
        baseline_bytes: resident memory once everything was imported.
    """

    seconds: float
    peak_bytes: int
    baseline_bytes: int


@dataclass(frozen=True)
class Program:
    """What a measured process runs: given a job in JSON and a folder to write the pruned checkpoint into, it prints the
    measurement in JSON as its last line.

    Attributes:
        argv: how it is called.
        environment: variables that it gets besides this process's.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


_DEFAULTS = {"THP_MEM_ALLOC_ENABLE": "1"}
"""Torch takes huge pages in every process that is measured, as it does under `dass`."""
OURS = Program((sys.executable, "-m", "benchmarks.measured"))


class JobFailed(Exception):
    """A measured process ended with an error; its own words went to stderr."""


def run(job: Job, scratch: Path) -> Measurement:
    """Measure a job in a fresh process. The pruned checkpoint is written into `scratch` and removed.

    Raises:
        JobFailed: the process did not end well.
    """
    with written(job, scratch) as (taken, _):
        return taken


@contextmanager
def written(job: Job, scratch: Path, program: Program = OURS) -> Iterator[tuple[Measurement, Path]]:
    """Measure a job in a fresh process, and show the checkpoint that it wrote into `scratch` before that is removed.

    Raises:
        JobFailed: the process did not end well.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    request = json.dumps(asdict(job), default=str)
    with tempfile.TemporaryDirectory(prefix="pruned-", dir=scratch) as output:
        command = [*program.argv, request, output]
        environment = {**_DEFAULTS, **os.environ, **program.environment}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise JobFailed(f"{request} ended with status {done.returncode}.")
        yield Measurement(**json.loads(done.stdout.splitlines()[-1])), Path(output)
