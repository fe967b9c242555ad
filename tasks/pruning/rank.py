"""One of the processes that share the calibration windows, as a program: `tasks.pruning.processes` starts it."""

import json
import os
import sys
from pathlib import Path

from dass.engine.ranks import joined_ranks
from dass.errors import InputError, NumericalError
from tasks.pruning.processes import MEETING, STARTER
from tasks.pruning.run import PruningRun
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import validate_settings
from tasks.workspace.tied import end_with


def _main(root: str, settings_file: str) -> None:
    """One rank: every layer in turn, until done or until torchrun or whoever started it is gone."""
    end_with(int(os.environ[STARTER]))
    end_with(os.getppid())
    settings = validate_settings(json.loads(Path(settings_file).read_text(encoding="utf-8")), settings_file)
    try:
        with joined_ranks(Path(os.environ[MEETING])) as ranks:
            run = PruningRun(Workspace(Path(root)), settings, ranks)
            for index in range(run.layer_count):
                run.layer(index)
            run.close()
    except (InputError, NumericalError) as error:
        sys.exit(f"dass: {error}")


if __name__ == "__main__":
    _main(*sys.argv[1:])
