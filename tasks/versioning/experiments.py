"""DVC experiments: the exact workspace of a registered version as a git commit, without a branch.

`dvc exp apply NAME`, or `git checkout COMMIT` and `dvc pull`, bring it back; `dvc exp push` shares it.
"""

from contextlib import chdir
from typing import TYPE_CHECKING

from dass.errors import InputError
from dass.files import complete_file
from tasks.versioning.follow_git import follow_git
from tasks.versioning.provenance import git_state
from tasks.versioning.repository import VersioningError, quiet_dvc
from tasks.workspace.folder import Workspace
from tasks.workspace.redaction import redacted
from tasks.workspace.settings import Settings

if TYPE_CHECKING:
    from dvc.repo import Repo


def check_experiments(ws: Workspace, settings: Settings) -> None:
    """Refuse a workspace that no experiment can be saved from, before any work.

    Raises:
        InputError: register.save_experiment is set, and the workspace is not in git, nothing was committed yet, DVC was
            told to leave git alone, or the settings are for one run: an experiment is the workspace as it lies there.
    """
    if not settings.register_.save_experiment:
        return
    if ws.once is not None:
        raise InputError(
            "register.save_experiment is true, and --with leaves params.yaml as it is: the experiment would hold other "
            "settings than made the result. Change params.yaml with -S, or add --with register.save_experiment=false."
        )
    otherwise = "or set register.save_experiment to false."
    if git_state(ws)[0] is None:
        raise InputError(
            f"register.save_experiment is true, and {ws.root} has no git commit: DVC saves experiments in git. "
            f"Commit the workspace (git init, git add, git commit), {otherwise}"
        )
    quiet_dvc()
    follow_git(ws)
    from dvc.repo import Repo

    with Repo(str(ws.root)) as repo:
        if repo.config["core"].get("no_scm"):
            raise InputError(
                f"register.save_experiment is true, and DVC in {ws.root} does without git. "
                f"Run: dvc config core.no_scm false, {otherwise}"
            )


def save_experiment(ws: Workspace, name: str) -> str:
    """Save the workspace as it is under a name, unless there is one of that name: equal results share it.

    The workspace's files, git's index and its branches stay as they are.

    Returns:
        The experiment's git commit.

    Raises:
        VersioningError: DVC could not save it.
    """
    quiet_dvc()
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    lock = ws.root / "dvc.lock"
    before = lock.read_bytes()
    try:
        # DVC takes the paths of a workspace inside a larger git repository from the current folder.
        with chdir(ws.root), Repo(str(ws.root)) as repo:
            commit = _saved(repo, name) or str(repo.experiments.save(name=name))
    except DvcException as error:
        raise VersioningError(
            f"DVC did not save the experiment {name}: {' '.join(redacted(str(error)).split())}"
        ) from error
    finally:
        if lock.read_bytes() != before:  # DVC commits every stage on the way
            with complete_file(lock) as temporary:
                temporary.write_bytes(before)
    return commit


def _saved(repo: "Repo", name: str) -> str | None:
    from dvc.repo.experiments.utils import exp_refs_by_names

    refs = exp_refs_by_names(repo.scm, {name}).get(name, [])
    return str(repo.scm.get_ref(str(refs[-1]))) if refs else None
