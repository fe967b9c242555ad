"""One of the processes that share the calibration windows, as a program: `tasks.pruning.processes` starts it."""

import json
import os
import sys
from pathlib import Path

from dass.engine.ranks import joined_ranks
from dass.errors import InputError, NumericalError
from tasks.pruning.processes import STARTER
from tasks.pruning.run import PruningRun
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import validate_settings


def _main(root: str, settings_file: str) -> None:
    """One rank: every layer in turn, until done or until whoever started the job is gone."""
    settings = validate_settings(json.loads(Path(settings_file).read_text(encoding="utf-8")), settings_file)
    try:
        with joined_ranks() as ranks:
            run = PruningRun(Workspace(Path(root)), settings, ranks)
            for index in range(run.layer_count):
                run.layer(index)
                if not _is_alive(int(os.environ[STARTER])):
                    sys.exit(1)
            run.close()
    except (InputError, NumericalError) as error:
        sys.exit(f"dass: {error}")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    _main(*sys.argv[1:])
