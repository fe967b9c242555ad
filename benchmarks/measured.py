"""The process that `benchmarks.job` measures: `python -m benchmarks.measured JOB OUTPUT` prints the measurement."""

import json
import re
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.logging import disable_progress_bar

from benchmarks.engine import prune_folder
from benchmarks.job import Job, Measurement
from benchmarks.reference import prune_reference
from dass.method.pattern import parse_pattern
from dass.model.pretrained import load_config, load_model


def measure(job: Job, output: Path) -> Measurement:
    """Run the job in this process."""
    input_ids_ST = load_file(job.tokens)["input_ids"][: job.windows, : job.length].contiguous()
    if input_ids_ST.shape != (job.windows, job.length):
        raise SystemExit(f"{job.tokens} has no {job.windows} windows of {job.length} tokens: {input_ids_ST.shape}.")
    dtype = getattr(torch, job.dtype)
    assert MODEL_FOR_CAUSAL_LM_MAPPING[type(load_config(job.checkpoint))]  # imported here, not timed
    baseline = _resident("VmRSS")
    began = time.perf_counter()
    if job.side == "engine":
        prune_folder(job.checkpoint, output, input_ids_ST, job.method, job.pattern, dtype, job.update, job.fewest_steps)
    else:
        model = load_model(job.checkpoint, dtype)
        prune_reference(model, input_ids_ST, job.method, parse_pattern(job.pattern))
        model.save_pretrained(output)
    seconds = time.perf_counter() - began
    # Linux counts both a few pages late, so that a peak can seem to lie below what came before it.
    return Measurement(seconds, max(_resident("VmHWM"), baseline), baseline)


def _resident(field: str) -> int:
    """Bytes. Linux counts VmHWM anew after exec; getrusage's peak would start from the parent's memory."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes
    found = re.search(rf"^{field}:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
    assert found is not None, f"{status} has no {field}"
    return int(found[1]) * 1024


def main() -> None:
    request: dict[str, Any] = json.loads(sys.argv[1])
    paths = {name: Path(request[name]) for name in ("checkpoint", "tokens")}
    disable_progress_bar()
    print(json.dumps(asdict(measure(Job(**(request | paths)), Path(sys.argv[2])))))


if __name__ == "__main__":
    main()
