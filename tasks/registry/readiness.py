"""Whether a result could be registered, asked before hours of work rather than behind them."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dass.errors import InputError
from tasks.registry.experiment import experiment_of
from tasks.registry.key_file import public_key
from tasks.registry.ledger_run import EXPERIMENT
from tasks.registry.place import database, local_path
from tasks.registry.publishing import check_may_register
from tasks.registry.rights import REGISTER, check_right
from tasks.registry.tracking import check_reachable, is_embedded, tracking
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TAG = "dass"  # on an experiment that results are registered in


def check_ready(workspace: Workspace, settings: Settings) -> None:
    """Make sure that MLflow is there, takes the names, and lets us write where they lead.

    The experiment is made when there is none. An embedded store that is not there yet is left to be made later.

    Raises:
        InputError: MLflow does not take a name, the experiment was deleted or keeps its files where nobody may write,
            the login may not write, the signing key cannot be used, or may not register versions of the model.
        BrokenLedger: the model's ledger is not whole.
        InfrastructureError: MLflow, its registry or its database cannot be reached.
    """
    check_reachable(workspace)
    check_names(settings)
    check_right(workspace, settings.register_.model, REGISTER)
    public_key()
    if is_embedded(workspace) and not database(workspace).exists():
        return
    with tracking(workspace) as client:
        experiment = experiment_of(workspace, client, settings.register_.experiment)
        _check_folder(client, experiment, settings.register_.experiment)
        client.set_experiment_tag(experiment, _TAG, "registers here")  # a login that only reads is refused here
        check_may_register(workspace, client, settings.register_.model)


def check_names(settings: Settings) -> None:
    """Raise InputError when MLflow would not take the model's or the experiment's name."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_experiment_name, _validate_model_name

    register = settings.register_
    for key, name, validate in (
        ("model", register.model, _validate_model_name),
        ("experiment", register.experiment, _validate_experiment_name),
    ):
        try:
            validate(name)
        except MlflowException as error:
            raise InputError(
                f"register.{key} is {name!r}, which MLflow does not take ({str(error).splitlines()[0].rstrip('.')}). "
                "Choose another name."
            ) from None
        if len(name) > _LONGEST[key] or not name.isprintable():
            raise InputError(f"register.{key} is {name[:80]!r}: expected at most {_LONGEST[key]} printable characters.")
    if register.experiment == EXPERIMENT:
        raise InputError(f"register.experiment is {EXPERIMENT!r}, where the ledgers lie. Choose another name.")


_LONGEST = {"model": 256, "experiment": 256}  # columns of MLflow's database


def _check_folder(client: "MlflowClient", experiment: str, name: str) -> None:
    """Where an experiment's files lie on this machine, they must be writable."""
    location = client.get_experiment(experiment).artifact_location
    folder = local_path(location)
    if folder is None:
        return
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not _is_writable(nearest):
        raise InputError(
            f"register.experiment {name!r} keeps its files in {folder}, and {nearest} cannot be written. "
            "Make it writable, or choose another experiment."
        )


def _is_writable(folder: Path) -> bool:
    """Tried, not asked: root has every permission, also where nothing can be made."""
    try:
        with TemporaryDirectory(prefix=".dass-", dir=folder):
            return True
    except OSError:
        return False
