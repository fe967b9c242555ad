"""Where the benchmarks keep things. Imports nothing, because measured processes read it too."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".dass" / "benchmarks"
"""Prepared models and results, one JSON file a benchmark."""
