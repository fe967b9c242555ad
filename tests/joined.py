"""One rank of a torchrun job that prunes a checkpoint: `torchrun ... -m tests.joined BASE FOLDER JOBS`.

JOBS is JSON: name -> {"tokens": [samples, length], "batch_tokens": n, "options": {...}, "dies": [rank, layer]}. Each is
a run in FOLDER/name; a rank that dies does so with SIGKILL, in the middle of a layer.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from dass.engine import Buffering, LayerwisePass
from dass.plan import plan
from dass.ranks import Ranks, joined_ranks
from dass.run import CheckpointRun
from dass.streaming import StreamedDecoder
from tests.models import tiny_tokens


def prune(base: Path, folder: Path, job: dict[str, Any], ranks: Ranks) -> None:
    """All layers of one run."""
    tokens = tiny_tokens(*job["tokens"])
    run = CheckpointRun(
        StreamedDecoder(base, torch.device("cpu")),
        tokens,
        plan(**job.get("options", {})),
        folder,
        buffering=Buffering(job["batch_tokens"]),
        ranks=ranks,
        checkpoint_every=job.get("checkpoint_every"),
    )
    rank, layer = job.get("dies", (-1, -1))
    for index in range(run.layer_count):
        if (ranks.rank, index) == (rank, layer):
            LayerwisePass.propagate = _die  # type: ignore[method-assign, assignment]
        run.layer(index)
    run.close()


def _die(*_: Any) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def main() -> None:
    base, folder, jobs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    with joined_ranks() as ranks:
        for name, job in jobs.items():
            prune(base, folder / name, job, ranks)


if __name__ == "__main__":
    main()
