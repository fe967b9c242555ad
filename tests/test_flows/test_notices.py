"""What a failed flow tells, and to whom."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from dass.errors import InfrastructureError, InputError
from flows import notices
from flows.notices import tell_lost, tells_failure
from tasks.workspace.lease import Owner
from tasks.workspace.settings import Notify
from tests.receivers import receiver
from tests.workspaces import change_settings, start_workspace


def test_a_failure_is_told_and_raised_as_it_was(tmp_path: Path) -> None:
    ws, _ = start_workspace(tmp_path)

    @tells_failure
    def compress(workspace: str, error: Exception | None = None) -> str:
        if error is not None:
            raise error
        return "done"

    with receiver() as there:
        change_settings(ws, notify__urls=[there.address])
        assert compress(str(tmp_path)) == "done"
        with pytest.raises(InfrastructureError, match="the store is gone"):
            compress(str(tmp_path), InfrastructureError("the store is gone"))
        with pytest.raises(InputError):
            compress(workspace=str(tmp_path), error=InputError("another value is needed"))
        with pytest.raises(KeyboardInterrupt):
            compress(str(tmp_path), KeyboardInterrupt())  # type: ignore[arg-type]
    gone, wrong = (body["data"] for body in there.bodies)
    assert (gone["model"], gone["flow"], gone["kind"], gone["why"]) == (
        *("tiny", "compress"),
        *("infrastructure", "the store is gone"),
    )
    assert (wrong["kind"], wrong["why"]) == ("bad input", "another value is needed")


def test_settings_that_cannot_be_read_hide_no_failure(tmp_path: Path) -> None:
    @tells_failure
    def compress(workspace: str) -> None:
        raise InputError("no settings")

    with pytest.raises(InputError, match="no settings"):
        compress(str(tmp_path))


def test_a_run_that_was_lost_is_told_by_the_one_that_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ws, _ = start_workspace(tmp_path)
    lost = replace(Owner.here(), work={"flow_run": "f1"})
    with receiver() as there:
        for each in (None, lost):
            lease = SimpleNamespace(lost=each, reason="its process is gone")
            monkeypatch.setattr(notices, "lease_of", lambda _, lease=lease: lease)
            tell_lost(ws, "tiny", Notify(urls=[there.address]))
    (said,) = (body["data"] for body in there.bodies)
    assert (said["kind"], said["why"], said["runs"]) == ("lost", "its process is gone", {"prefect": "f1"})
