"""Wanda with llm-compressor: `python -I llm_compressor.py JOB OUTPUT`, in an environment with it and nothing of ours.

JOB is what `benchmarks.job` gives every measured process, and the last line printed is its measurement. The clock
starts when everything is imported and the tokenizer is read, and stops when `oneshot` has saved the pruned checkpoint.
"""

import json
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import WandaPruningModifier
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

_MLP = r"re:.*\.mlp\.(gate|up|down)_proj$"


def measure(job: dict[str, Any], output: str) -> dict[str, Any]:
    """Prune the MLPs of a checkpoint at half, on the job's windows in their order, one a batch as its default is."""
    if job["method"] != "wanda":
        raise SystemExit(f"This is Wanda, not {job['method']}.")
    checkpoint, windows, length = job["checkpoint"], job["windows"], job["length"]
    ids_ST = load_file(job["tokens"])["input_ids"][:windows, :length].contiguous()
    if ids_ST.shape != (windows, length):
        raise SystemExit(f"{job['tokens']} has no {windows} windows of {length} tokens: {tuple(ids_ST.shape)}.")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False, local_files_only=True)
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False, local_files_only=True)
    assert MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]  # imported here, not timed
    baseline = _resident("VmRSS")
    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=getattr(torch, job["dtype"]), trust_remote_code=False, local_files_only=True
    )
    oneshot(
        model=model,
        processor=tokenizer,
        dataset=DataLoader([{"input_ids": ids_T} for ids_T in ids_ST]),  # type: ignore[arg-type]  # a list is one
        recipe=WandaPruningModifier(sparsity=0.5, mask_structure=_removed(job["pattern"]), targets=[_MLP]),
        output_dir=output,
    )
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak_bytes": max(_resident("VmHWM"), baseline), "baseline_bytes": baseline}


def _removed(pattern: str) -> str:
    """A pattern in its words: of N:M it counts those removed, and 0:0 is unstructured."""
    if pattern == "unstructured":
        return "0:0"
    kept, group = map(int, pattern.split(":"))
    return f"{group - kept}:{group}"


def _resident(field: str) -> int:
    """Bytes, as `benchmarks.measured` counts them."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes
    found = re.search(rf"^{field}:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
    assert found is not None, f"{status} has no {field}"
    return int(found[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]), sys.argv[2])))
