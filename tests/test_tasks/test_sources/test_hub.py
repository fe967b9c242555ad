"""A model on a hub: pinned to a commit, fetched as far as it is read, and what is said where it cannot be had."""

import shutil
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
from huggingface_hub.utils._paths import filter_repo_objects
from transformers import AutoModelForCausalLM

from dass.files import files_in, read_json
from tasks.sources.hub import HubId, fetch_checkpoint
from tasks.workspace.folder import Workspace
from tests.models import tiny_model, tiny_tokenizer
from tests.test_tasks.test_sources.test_base import fetch, refused


@pytest.fixture
def hub(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub cache that holds one model, as if it had been fetched before. Returns its commit."""
    commit = "c" * 40
    home = tmp_path / "hub" / "models--tiny--llama"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    (home / "blobs").mkdir()
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in tiny_checkpoint.iterdir():
        file.rename(home / "blobs" / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return commit


@pytest.mark.parametrize("uri", ["tiny/llama", "tiny/llama@main", f"tiny/llama@{'c' * 40}"])
def test_a_hub_model_is_pinned_to_its_commit_and_copied(ws: Workspace, hub: str, uri: str) -> None:
    base = fetch(ws, {"uri": uri})
    record = read_json(base / "source.json")
    assert (record["uri"], record["revision"], record["sha256"]) == (uri, hub, None)
    assert not any(path.is_symlink() for path in base.iterdir())
    AutoModelForCausalLM.from_pretrained(base)


def test_a_snapshot_of_the_hub_s_cache_is_a_model_folder_too(ws: Workspace, hub: str) -> None:
    assert fetch(ws, {"uri": f"hub/models--tiny--llama/snapshots/{hub}"}).is_dir()


@pytest.mark.parametrize("sharded", [False, True])
def test_of_a_hub_model_only_what_is_read_is_fetched(
    ws: Workspace, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool
) -> None:
    repository = ws.root / "repository"
    tiny_model().save_pretrained(repository, max_shard_size="60KB" if sharded else "5GB")
    tiny_tokenizer().save_pretrained(repository)
    read = {"README.md", "License.txt", *(path.name for path in repository.iterdir())}
    unread = ["consolidated.safetensors", "original/model.safetensors", "onnx/config.json", "a.safetensors", "x.bin"]
    if not sharded:
        unread.append("model.safetensors.index.json")
    for name in ("README.md", "License.txt", *unread):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("text")

    def snapshot_download(repo: str, *, revision: str, allow_patterns: list[str]) -> str:
        for name in filter_repo_objects(files_in(repository), allow_patterns=allow_patterns):
            (ws.root / "snapshot" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / name, ws.root / "snapshot" / name)
        return str(ws.root / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert set(files_in(fetch_checkpoint(HubId("tiny/llama", None), "c" * 40))) == read


def test_a_hub_model_that_cannot_be_had_is_one_line(ws: Workspace, hub: str) -> None:
    refused(
        ws, {"uri": "tiny/absent"}, "tiny/absent is no local path, and the hub does not give it .*HF_HUB_OFFLINE is set"
    )
    refused(ws, {"uri": f"tiny/absent@{'d' * 40}"}, "tiny/absent@d+ is no local path, and the hub does not give it")
