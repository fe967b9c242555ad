"""What is registered is on disk: a power cut behind it takes no file of the version."""

import os
from pathlib import Path
from typing import Any

import pytest

from tasks.registry.place import local_path
from tasks.registry.registration import register
from tasks.registry.tracking import tracking
from tasks.registry.versions import all_versions
from tests.workspaces import finish_workspace

PROVENANCE: dict[str, Any] = {"git_commit": None, "git_dirty": None, "dvc": {}, "seconds": {}}


def test_every_file_and_folder_is_synced_before_the_version_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws, settings = finish_workspace(tmp_path / "ws")
    sync, synced = os.fsync, set[int]()

    def note(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        sync(handle)

    monkeypatch.setattr(os, "fsync", note)

    register(ws, settings, PROVENANCE)

    with tracking(ws) as client:
        version = client.get_model_version("tiny", all_versions(client, "tiny")[0].version)
        place = local_path(client.get_logged_model(version.source.removeprefix("models:/")).artifact_location)
    assert place is not None
    paths = [place, *place.rglob("*")]
    assert any(path.suffix == ".safetensors" for path in paths)
    assert [path for path in paths if path.stat().st_ino not in synced] == []
