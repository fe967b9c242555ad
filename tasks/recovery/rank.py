"""One of the processes that share each step of a recovery, as a program: `tasks.pruning.processes` starts it."""

import sys

from dass.engine.ranks import Ranks
from tasks.pruning.processes import work_as_rank
from tasks.recovery.run import RecoveryRun
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings


def _recover(workspace: Workspace, settings: Settings, ranks: Ranks) -> None:
    run = RecoveryRun(workspace, settings, ranks)
    run.train(run.note_step)


if __name__ == "__main__":
    work_as_rank(sys.argv[1], sys.argv[2], _recover)
