import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.job import Job, JobFailed, Measurement, Program, Side, run, written
from benchmarks.measured import measure
from benchmarks.random_checkpoint import write_tokens
from tests.models import VOCABULARY


def _job(checkpoint: Path, side: Side = "engine", windows: int = 4) -> Job:
    tokens = checkpoint.parent / "tokens.safetensors"
    write_tokens(tokens, 4, 16, VOCABULARY)
    return Job(side, "dass", "float32", checkpoint, tokens, windows, 16)


def measured_here(job: Job, scratch: Path) -> Measurement:
    """What `run` does, without a process of its own: it takes seconds to start."""
    with TemporaryDirectory(dir=scratch) as output:
        return measure(job, Path(output))


def test_both_sides_write_the_same_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    written = {}
    for side in ("engine", "reference"):
        taken = measure(_job(tiny_checkpoint, side), tmp_path / side)
        assert 0 < taken.seconds < 60
        assert taken.peak_bytes >= taken.baseline_bytes > 50e6
        written[side] = load_file(tmp_path / side / "model.safetensors")
    assert written["engine"].keys() == written["reference"].keys()
    for name, value in written["engine"].items():
        assert (value != written["reference"][name]).float().mean() < 0.002, name
    assert (written["engine"]["model.layers.0.mlp.up_proj.weight"] == 0).float().mean() == 0.5


def test_a_process_of_its_own_reports_its_own_memory_and_leaves_no_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ballast = torch.ones(10**9, dtype=torch.uint8)  # of this process, and not of the measured one
    taken = run(_job(tiny_checkpoint), tmp_path / "scratch")
    assert isinstance(taken, Measurement)
    assert taken.peak_bytes < ballast.nbytes
    assert not list((tmp_path / "scratch").iterdir())


def test_a_run_that_fails_says_which(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no 5 windows of 16 tokens"):
        measure(_job(tiny_checkpoint, windows=5), tmp_path / "out")
    fails = Program(("/bin/false",))
    failing = written(_job(tiny_checkpoint, windows=5), tmp_path / "scratch", fails)
    with pytest.raises(JobFailed, match='"side": "engine".*"windows": 5.*ended with status 1'), failing:
        pass
    assert not list((tmp_path / "scratch").iterdir())


_OTHER_TOOL = """
import json, os, pathlib, sys
job, output = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2])
(output / "pattern.txt").write_text(job["pattern"] + os.environ["WORD"])
print("a line of its own")
print(json.dumps({"seconds": 1.5, "peak_bytes": 20, "baseline_bytes": 10}))
"""


def test_another_program_is_told_the_job_and_shows_what_it_wrote(tmp_path: Path) -> None:
    program = Program((sys.executable, "-I", "-c", _OTHER_TOOL), {"WORD": "!"})
    asked = Job("peer", "wanda", "float32", tmp_path, tmp_path / "tokens", 4, 16, pattern="2:4")
    with written(asked, tmp_path / "scratch", program) as (taken, folder):
        assert taken == Measurement(1.5, 20, 10)
        assert (folder / "pattern.txt").read_text() == "2:4!"
    assert not list((tmp_path / "scratch").iterdir())
