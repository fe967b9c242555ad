"""A version on the hub: proved before, whole behind its tag, gone on with, and never replaced. Against a double."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, snapshot_download

from dass.errors import InfrastructureError, InputError
from dass.files import read_json
from dass.masks.proof import ProofError
from tasks.promotion.history import history
from tasks.promotion.verification import verify_named
from tasks.registry.checked import ForeignChampion
from tasks.registry.ledger import Ledger, NotAllowed
from tasks.registry.registration import register
from tasks.registry.tracking import tracking
from tasks.release.publish import TAG, publish
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import load_settings
from tests.forgeries import another_user
from tests.hub_repositories import TOKEN, Hub, HubRepository, hub_repositories
from tests.test_tasks.test_promotion.test_verification import PROVENANCE
from tests.workspaces import change_settings, copy_workspace

REPO, OTHER = "org/tiny-pruned", "org/gone-on"
TOP = {"README.md", "bom.cdx.json", "config.json", "dass.json", "model.safetensors", "tokenizer.json"}
RECORDS = {"dass/manifest.json", "dass/masks.safetensors", "dass/model.sig", "dass/version.json"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_repositories(monkeypatch) as made:
        yield made


@pytest.fixture(scope="module")
def registered(finished_template: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with one version, for all tests that leave its files alone."""
    ws = copy_workspace(finished_template, tmp_path_factory.mktemp("published") / "workspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register(ws, load_settings(ws.params), PROVENANCE)
    return ws


def events(ws: Workspace) -> list[tuple[str, dict[str, Any]]]:
    with tracking(ws) as client:
        return [(entry.event, entry.details) for entry in Ledger.open(client, "tiny", ws).entries()]


def test_a_version_is_published_recorded_and_loaded_from_there(
    registered: Workspace, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = publish(registered, "tiny", "challenger", REPO, dry_run=True)
    assert (planned.outcome, planned.commit, planned.entry) == ("dry run", None, None)
    assert not hub.written
    told = planned.lines()
    assert f"tiny version 1 to {REPO}@v1 (private, http://127.0.0.1:" in told[0]
    assert f"would send {len(planned.files)} files, {sum(planned.files.values()):,} bytes; 0 are there." in told[0]
    assert any(line.strip().startswith("model.safetensors ") for line in told[1:])
    done = publish(registered, "tiny", "challenger", REPO)
    assert f'from_pretrained("{REPO}", revision="v1")' in done.lines()[1]
    there = hub.repositories[REPO]
    assert there.private
    assert there.tags == {"v1": done.commit} == {"v1": there.branches["main"]}
    tree = there.commits[str(done.commit)]
    assert tree.keys() - {".gitattributes"} == done.files.keys() == planned.files.keys() == set(planned.sent)
    assert tree.keys() >= TOP | RECORDS
    assert not [name for name in tree if name.endswith((".bin", ".pt", ".parquet", ".py"))]
    assert tree["model.safetensors"] == (registered.pruned / "model.safetensors").read_bytes()
    event, details = events(registered)[-1]
    assert (event, details["repo"], details["revision"], details["commit"]) == ("published", REPO, "v1", done.commit)
    with tracking(registered) as client:
        assert json.loads(client.get_model_version("tiny", "1").tags[TAG])["repo"] == REPO
    newest = history(registered, "tiny")["versions"][0]
    assert newest["events"][-1]["event"] == "published"

    again = publish(registered, "tiny", "1", REPO)
    assert (again.outcome, again.commit, again.entry, again.sent) == ("was there", done.commit, done.entry, [])
    assert len(hub.uploads) == len(set(hub.uploads))

    copy = Path(snapshot_download(REPO, revision="v1", local_dir=tmp_path / "copy"))
    assert not verify_named(registered, "tiny", str(copy)).failed
    assert ModelCard.load(copy / "README.md").data.library_name == "transformers"
    assert read_json(copy / "bom.cdx.json")["bomFormat"] == "CycloneDX"
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(copy).config.model_type == "llama"
    with (copy / "bom.cdx.json").open("a") as file:
        file.write(" ")
    assert verify_named(registered, "tiny", str(copy)).failed == "checkpoint"


def test_masks_only_become_the_checkpoint_that_was_measured(finished: Workspace, hub: Hub) -> None:
    register(finished, change_settings(finished, register__artifact="masks"), PROVENANCE)
    done = publish(finished, "tiny", "1", REPO)
    tree = hub.repositories[REPO].commits[str(done.commit)]
    assert tree["model.safetensors"] == (finished.pruned / "model.safetensors").read_bytes()


def test_what_failed_in_between_is_gone_on_with(registered: Workspace, hub: Hub) -> None:
    hub.failing["POST /api/models/org/gone-on/commit/"] = [403]
    with pytest.raises(InputError, match="does not let this login write to org/gone-on"):
        publish(registered, "tiny", "1", OTHER)
    sent = list(hub.uploads)
    assert sent
    hub.failing["POST /api/models/org/gone-on/tag/"] = [400]
    with pytest.raises(InfrastructureError, match="told to fail.*Publish again"):
        publish(registered, "tiny", "1", OTHER)
    assert not hub.repositories[OTHER].tags
    before = [details["repo"] for event, details in events(registered) if event == "published"]
    assert OTHER not in before
    done = publish(registered, "tiny", "1", OTHER)
    assert hub.repositories[OTHER].tags == {"v1": done.commit}
    assert hub.uploads == sent  # nothing was sent twice
    assert len(hub.repositories[OTHER].commits) == 2


def test_a_revision_with_other_bytes_stays_as_it_is(registered: Workspace, hub: Hub) -> None:
    other = hub.repositories[REPO] = HubRepository(private=True)
    other.tags["v1"] = other.commit("main", {"README.md": b"another model", "old.txt": b"?"})
    with pytest.raises(InputError, match=r"has a revision v1 with other bytes .* Name another one: --revision"):
        publish(registered, "tiny", "1", REPO)
    assert not hub.written
    done = publish(registered, "tiny", "1", REPO, revision="dass-1")
    assert done.removed == ["old.txt"]
    assert other.tags["v1"] != other.tags["dass-1"] == other.branches["main"]
    assert "old.txt" not in other.commits[str(done.commit)]


def test_a_public_repository_is_asked_for_by_name(registered: Workspace, hub: Hub) -> None:
    hub.repositories[REPO] = HubRepository(private=False)
    hub.repositories[REPO].commit("main", {})
    with pytest.raises(InputError, match="org/tiny-pruned is public, and publishing is private by default"):
        publish(registered, "tiny", "1", REPO)
    assert not hub.written
    assert not publish(registered, "tiny", "1", "org/seen", public=True).private


def test_what_is_not_proved_is_not_sent(registered: Workspace, hub: Hub, tmp_path: Path) -> None:
    registered = copy_workspace(registered, tmp_path / "workspace")
    with tracking(registered) as client:
        source = client.get_model_version("tiny", "1").source.removeprefix("models:/")
        folder = Path(client.get_logged_model(source).artifact_location.removeprefix("file://"))
    with (folder / "model" / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ProofError, match=r"tiny version 1 is not proved \(files, configuration.*nothing was published"):
        publish(registered, "tiny", "1", REPO)
    assert not hub.repositories


def test_without_a_login_or_a_name_nothing_is_asked(
    registered: Workspace, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="'a b' is no repository's name: expected org/name"):
        publish(registered, "tiny", "1", "a b")
    with pytest.raises(InputError, match="expected org/name"):
        publish(registered, "tiny", "1", "name")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="No login to the hub: set HF_TOKEN"):
        publish(registered, "tiny", "1", REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_notTheRightOneAtAll")
    with pytest.raises(InputError, match=r"does not let this login write to org/tiny-pruned \(401") as refused:
        publish(registered, "tiny", "1", REPO)
    assert "hf_notTheRightOneAtAll" not in str(refused.value)
    assert not hub.written


def test_the_token_is_nowhere_afterwards(
    registered: Workspace, hub: Hub, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        publish(registered, "tiny", "1", REPO)
    told = capfd.readouterr()
    assert TOKEN not in caplog.text + told.out + told.err
    held = [path for path in registered.root.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert not held
    assert os.environ["HF_TOKEN"] == TOKEN


def test_a_stranger_s_key_and_an_alias_set_by_hand_publish_nothing(
    registered: Workspace, hub: Hub, tmp_path: Path
) -> None:
    with another_user(tmp_path / "stranger"), pytest.raises(NotAllowed, match="takes no entry 'published' from you"):
        publish(registered, "tiny", "1", REPO)
    ws = copy_workspace(registered, tmp_path / "workspace")
    with tracking(ws) as client:
        client.set_registered_model_alias("tiny", "champion", "1")
    with pytest.raises(ForeignChampion, match="which the ledger never promoted"):
        publish(ws, "tiny", "champion", REPO)
    assert not hub.asked
