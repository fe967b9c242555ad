"""What a failed flow tells, and to whom."""

from pathlib import Path

import pytest

from dass.errors import InfrastructureError, InputError
from flows.notices import tells_failure
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
