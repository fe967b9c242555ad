"""One of the processes that share the calibration windows, as a program: `tasks.pruning.processes` starts it."""

import sys

from dass.engine.ranks import Ranks
from tasks.pruning.processes import work_as_rank
from tasks.pruning.run import PruningRun
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings


def _prune(workspace: Workspace, settings: Settings, ranks: Ranks) -> None:
    """Every layer in turn."""
    run = PruningRun(workspace, settings, ranks)
    for index in range(run.layer_count):
        run.layer(index)
    run.close()


if __name__ == "__main__":
    work_as_rank(sys.argv[1], sys.argv[2], _prune)
