"""What a user runs, from a benchmark: a command of `dass`."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.job import JobFailed


def dass_run(ws: Path, changes: Mapping[str, Any], recipe: str | None = None) -> dict[str, Any]:
    """One `dass run`; a run that was killed goes on.

    Args:
        ws: the workspace.
        changes: setting -> value, as -S gives them.
        recipe: of --recipe; its settings come first.

    Returns:
        What `dass run --json` answers.

    Raises:
        JobFailed: it did not end well; its own words went to stderr.
    """
    asked = [
        f"-S{key}={yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize).splitlines()[0]}"
        for key, value in changes.items()
    ]
    named = [] if recipe is None else ["--recipe", recipe]
    return answer_of("run", ws, *named, *asked)


def answer_of(command: str, ws: Path, *arguments: str) -> dict[str, Any]:
    """What one `dass COMMAND --json` in a workspace answers; one that was killed before goes on.

    Raises:
        JobFailed: it did not end well; its own words went to stderr.
    """
    argv = [sys.executable, "-P", "-m", "flows", *command.split(), "--workspace", str(ws), "--json", *arguments]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        answer, _ = process.communicate()
    except KeyboardInterrupt:
        process.wait()  # it has heard it, too; subprocess.run would kill it while it ends what it has started
        raise
    if process.returncode:
        raise JobFailed(f"dass {command} failed with status {process.returncode} in {ws}.")
    found: dict[str, Any] = json.loads(answer)
    return found


def perplexities(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Of metrics/evaluation.json, what both tables of docs/results.md begin with."""
    return {
        "windows": metrics["windows"],
        "context_length": metrics["context_length"],
        "dense": metrics["dense"]["perplexity"],
        "pruned": metrics["pruned"]["perplexity"],
        "ratio": metrics["ratio"],
        "interval": metrics["interval"]["ratio"],
    }
