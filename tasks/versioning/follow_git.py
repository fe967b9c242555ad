"""DVC and git: DVC leaves its small files to git where there is git, and does without it elsewhere.

That is a fact of this machine and of this moment: a workspace comes into git, or leaves it. So it is kept in
.dvc/config.local, which git does not know, and each run looks again.
"""

import logging

from dass.errors import InputError
from tasks.versioning.git import is_tracked_place
from tasks.workspace.folder import Workspace

WITHOUT_GIT = "[core]\n    no_scm = true\n"
"""What .dvc/config.local says outside git."""
_LOG = logging.getLogger("dass")


def follow_git(ws: Workspace) -> None:
    """Let DVC use git exactly where git would track the workspace, and say so when that changes.

    `core.no_scm` in .dvc/config was written by a person and stays.

    Raises:
        InputError: git does not say whether it tracks the workspace, or DVC's configuration cannot be read.
    """
    from dvc.config import Config, ConfigError

    tracked = is_tracked_place(ws.root)
    try:
        config = Config(str(ws.root / ".dvc"), validate=False)
    except ConfigError as error:
        raise InputError(f"DVC in {ws.root}: {' '.join(str(error).split())}") from error
    by_hand, ours = (config.load_one(level).get("core", {}).get("no_scm") for level in ("repo", "local"))
    if tracked and ours is not None:
        with config.edit("local", validate=False) as local:
            del local["core"]["no_scm"]
        _LOG.info("%s is in git now: DVC leaves its small files to it", ws.root)
    elif not tracked and by_hand is None and ours is None:
        with config.edit("local", validate=False) as local:
            local.setdefault("core", {})["no_scm"] = True
        _LOG.info("%s is not in git: DVC does without it", ws.root)
    if tracked and str(by_hand).lower() == "true":
        _LOG.warning(
            "%s is in git, and DVC does without it because .dvc/config says so. Run: dvc config --unset core.no_scm",
            ws.root,
        )
