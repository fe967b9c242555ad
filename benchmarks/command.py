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
    """Call `main`; what it refuses and Ctrl-C are one line each, with status 2 and 130."""
    try:
        main()
    except KeyboardInterrupt:
        print("Interrupted. The same command, without --fresh, goes on behind what was measured.", file=sys.stderr)
        sys.exit(130)
    except (InputError, JobFailed) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
