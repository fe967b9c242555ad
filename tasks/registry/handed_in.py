"""A version's folder on its way into MLflow's store. Where that is a folder here, files are compared while copied.

The signature may rest on digests that were remembered. Copying reads every byte anyway, so what differs shows here.
What is registered afterwards is on disk by then: a power cut takes no file of a version that the database names.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dass.digests import copy_file
from dass.files import files_in, fsync_path, naming
from dass.sync_behind import SyncBehind
from tasks.registry.place import local_path
from tasks.registry.signing import SIGNATURE, SignatureError, signed_files

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel


def hand_in(client: "MlflowClient", logged: "LoggedModel", folder: Path) -> None:
    """Give MLflow the files of a signed folder, byte for byte.

    Raises:
        SignatureError: a file is not what was signed a moment ago.
        OSError: the store's disk is full or fails; names a file.
    """
    place = local_path(logged.artifact_location)
    if place is None:
        client.log_model_artifacts(logged.model_id, str(folder))
        return
    signed = signed_files(folder / SIGNATURE)
    with SyncBehind() as behind:
        for name, path in sorted(files_in(folder).items()):
            target = place / name
            with naming(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                found = copy_file(path, target, behind=behind)
                shutil.copystat(path, target)
            if name != SIGNATURE and found.sha256 != signed.get(name):
                raise SignatureError(f"{name} was changed while it was registered. Nothing was registered: run again.")
    for written in (place, *(each for each in place.rglob("*") if each.is_dir())):
        fsync_path(written)
