"""A checkpoint that was written from a version is proved, and what was changed in it is named."""

from pathlib import Path

import pytest

from dass.errors import InputError
from tasks.promotion.verification import verify_named
from tasks.registry.loading import materialize_registered
from tasks.registry.registration import register
from tasks.workspace.folder import Workspace
from tests.test_tasks.test_promotion.test_verification import PROVENANCE
from tests.workspaces import change_settings


@pytest.mark.parametrize("artifact", ["checkpoint", "masks"])
def test_a_materialised_checkpoint_is_proved_and_a_changed_one_is_not(
    artifact: str, finished: Workspace, tmp_path: Path
) -> None:
    ws, copy = finished, tmp_path / "copy"
    register(ws, change_settings(ws, register__artifact=artifact), PROVENANCE)
    materialize_registered(ws, "tiny", "1", copy)
    proof = verify_named(ws, "tiny", str(copy))
    assert [(step.name, step.passed) for step in proof.steps] == [
        (name, True) for name in ("version", "ledger", "checkpoint", "pattern")
    ]
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    for name, content, told in (
        ("model.safetensors", bytes(weights), "model.safetensors is not the version's"),
        ("config.json", b"{}", "config.json is not the version's"),
        ("more.txt", b"x", "more.txt is extra"),
    ):
        before = (copy / name).read_bytes() if (copy / name).exists() else None
        (copy / name).write_bytes(content)
        (step,) = [step for step in verify_named(ws, "tiny", str(copy)).steps if step.passed is False]
        assert (step.name, step.told.startswith(told)) == ("checkpoint", True), step.told
        (copy / name).unlink() if before is None else (copy / name).write_bytes(before)
    for name in ("README.md", "dass.json"):
        (copy / name).write_text("{}")
    assert "no version of tiny has this README.md or dass.json" in verify_named(ws, "tiny", str(copy)).steps[0].told
    with pytest.raises(InputError, match="--replay proves a version"):
        verify_named(ws, "tiny", str(copy), replay=True)
