"""Where the benchmarks keep things. Imports nothing, because measured processes read it too."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".dass" / "benchmarks"
"""Prepared models and scratch."""
RESULTS = ROOT / "benchmarks" / "results"
"""One JSON file a benchmark, tracked in git: whoever measures one thing can write the whole page."""
