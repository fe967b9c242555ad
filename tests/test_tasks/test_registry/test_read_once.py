"""What a registration reads of weights, as the kernel counts it, and what it does when its memory of them is wrong."""

from pathlib import Path
from typing import Any

import pytest

from dass.errors import InputError
from dass.files import sha256_file
from tasks.registry.registration import register
from tasks.registry.signing import SignatureError
from tasks.registry.tracking import tracking
from tasks.registry.versions import all_versions
from tasks.workspace import digests
from tasks.workspace.digests import known_digests, remember
from tests.models import save_tiny_checkpoint
from tests.workspaces import STAGES, change_settings, finish_workspace, start_workspace

PROVENANCE: dict[str, Any] = {"git_commit": None, "git_dirty": None, "dvc": {}, "seconds": {}}
_ROWS = 200_000  # of the vocabulary: 26 MB, beside which databases and records are small


def bytes_read() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel does not count what a process reads")
def test_a_registration_reads_the_weights_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASS_CACHE", str(tmp_path / "cache"))
    register(*finish_workspace(tmp_path / "tiny"), PROVENANCE)  # what is imported and made once is no weight
    ws, _ = start_workspace(tmp_path / "large")
    save_tiny_checkpoint(ws.root / "model", vocab_size=_ROWS)
    settings = change_settings(ws)
    for stage in STAGES:
        stage(ws, settings)
    size = (ws.pruned / "model.safetensors").stat().st_size
    before = bytes_read()
    register(ws, settings, PROVENANCE)
    assert size <= bytes_read() - before < 1.5 * size  # the copy into MLflow's store
    before = bytes_read()
    assert known_digests(ws.pruned / "model.safetensors").sha256  # the links that it made and removed are forgotten
    assert bytes_read() - before < 0.1 * size


def test_a_memory_that_is_wrong_registers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LEAST_BYTES", 1)
    ws, settings = finish_workspace(tmp_path / "ws")
    weights = ws.pruned / "model.safetensors"
    before = known_digests(weights)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert known_digests(weights).sha256 == sha256_file(weights) != before.sha256
    remember(weights, before)
    with pytest.raises(SignatureError, match=r"model/model\.safetensors was changed while it was registered"):
        register(ws, settings, PROVENANCE)
    with tracking(ws) as client:
        assert all_versions(client, "tiny") == []
    for note in (tmp_path / "cache" / "digests").iterdir():
        note.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: it is not the file that dass\.json names"):
        register(ws, settings, PROVENANCE)
