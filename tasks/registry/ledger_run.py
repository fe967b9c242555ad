"""Which MLflow run holds a model's ledger: the one that the registered model's tag names, made when there is none."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from dass.errors import InputError
from tasks.registry.chain import BrokenLedger
from tasks.registry.experiment import KIND
from tasks.registry.tracking import code_of, store_of
from tasks.registry.trust import Trust
from tasks.registry.versions import all_versions

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

EXPERIMENT = "dass ledger"
TAG = "ledger"
"""On a registered model: the run that holds its ledger."""


def find_model(client: "MlflowClient", model: str) -> "RegisteredModel | None":
    """The registered model of a name, if there is one."""
    try:
        return client.get_registered_model(model)
    except Exception as error:
        if code_of(error) not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def forget_unused(client: "MlflowClient", model: str, tag: str, value: str) -> None:
    """Delete ledgers with this tag that hold nothing, and with them the registered model without a version.

    Whoever made such a ledger failed with the very first version. Behind the list of keys there is at most an entry
    about that one, which is gone.
    """
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return
    for run in client.search_runs([experiment.experiment_id], f"tags.{tag} = '{value}'"):
        registered = find_model(client, model)
        owner = registered if registered is not None and registered.tags.get(TAG) == run.info.run_id else None
        if len(run.data.params) > 2 or (owner is not None and owner.latest_versions):
            continue
        if owner is not None:
            client.delete_registered_model(model)
            Trust(store_of(client)).forget(model)
        client.delete_run(run.info.run_id)


def make_run(client: "MlflowClient", model: str, tags: dict[str, str] | None = None) -> str:
    """An empty run that can hold a ledger. It is finished from the start: params may be added all the same."""
    experiment = _experiment(client, EXPERIMENT)
    run_id = client.create_run(experiment, tags=tags, run_name=model[:250]).info.run_id
    client.set_terminated(run_id, "FINISHED")
    return str(run_id)


def _experiment(client: "MlflowClient", name: str, tags: dict[str, str] | None = None) -> str:
    """The experiment of that name, made with these tags when there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, tags={**KIND, **(tags or {})}))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)
    if found.lifecycle_stage != "active":
        raise InputError(
            f"MLflow's experiment {name!r} was deleted. Run: mlflow experiments restore -x {found.experiment_id}"
        )
    return str(found.experiment_id)


def adopt(client: "MlflowClient", registered: "RegisteredModel") -> str:
    """Give a ledger to a registered model without one, such as somebody has made by hand.

    A tag can be overwritten, so two processes that do this at once agree by an experiment's name, which is unique.
    """
    versions = all_versions(client, registered.name)
    if versions:
        raise BrokenLedger(
            f"The ledger of {registered.name!r} is lost: the model has no tag {TAG!r}, though it has "
            f"{len(versions)} versions. Were they registered by something else? Then choose another register.model."
        )
    run_id = make_run(client, registered.name)
    claim = _experiment(
        client, f"{EXPERIMENT} of {registered.name} since {registered.creation_timestamp}", {TAG: run_id}
    )
    agreed = str(client.get_experiment(claim).tags[TAG])
    if agreed != run_id:
        client.delete_run(run_id)
    write_twice(lambda: client.set_registered_model_tag(registered.name, TAG, agreed))
    return agreed


def write_twice(write: Callable[[], object]) -> None:
    """Set a tag or an alias. MLflow looks before it inserts one, and tells a lost race as a bad request."""
    from mlflow.exceptions import MlflowException

    try:
        write()
    except MlflowException as error:
        if error.error_code != "BAD_REQUEST":
            raise
        write()  # now it is there and is updated
