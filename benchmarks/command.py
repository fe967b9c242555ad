"""What the benchmarks' command lines share."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.job import JobFailed
from benchmarks.paths import RESULTS
from dass.errors import InputError


def parser(description: str | None, results: str) -> argparse.ArgumentParser:
    """A parser with --results and --fresh."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--results", type=Path, default=RESULTS / results, help="JSON file; what it holds is not redone")
    made.add_argument("--fresh", action="store_true", help="forget what the results file holds")
    return made


def run(main: Callable[[], None]) -> None:
    """Call `main`; what it refuses is one line and status 2."""
    try:
        main()
    except (InputError, JobFailed) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
