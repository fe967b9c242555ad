"""`dass keys`: who may sign what, on both stores, and what becomes of what a key signed."""

import json
import signal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from dass.errors import InputError
from dass.files import read_json
from tasks.registry import keys
from tasks.registry.chain import BrokenLedger
from tasks.registry.key_file import fingerprint, key_file, public_key
from tasks.registry.ledger import Ledger, NotAllowed
from tasks.registry.trust import KEYS
from tasks.workspace.folder import Workspace
from tests.bare_versions import bare_model, manifest_of
from tests.forgeries import another_user
from tests.processes import rotate_key, start
from tests.stores import Store


@pytest.fixture
def ws(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace of the test's own on the shared store, and a key of its own to give up."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setenv("DASS_SIGNING_KEY", str(tmp_path / "own" / "signing-key.pem"))
    (tmp_path / "ws").mkdir()
    return Workspace(tmp_path / "ws")


def public_file(folder: Path) -> Path:
    """A stranger's public key."""
    with another_user(folder):
        file = folder / "public.pem"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(public_key())
    return file


def write_as(folder: Path, client: MlflowClient, model: str, event: str) -> str:
    with another_user(folder):
        return str(Ledger.open(client, model).record(event, "1", manifest_of("1"), {}).actor)


def test_a_key_may_do_what_its_roles_say(ws: Workspace, client: MlflowClient, model: str, tmp_path: Path) -> None:
    bare_model(client, model)
    with pytest.raises(NotAllowed, match=r"takes no entry 'registered' from you: your key ci .* is not in its list"):
        write_as(tmp_path / "ci", client, model, "registered")
    keys.add(ws, model, public_file(tmp_path / "ci"), "ci", ["register"])
    assert write_as(tmp_path / "ci", client, model, "registered") == "ci"
    assert write_as(tmp_path / "ci", client, model, "verified") == "ci"
    with pytest.raises(NotAllowed, match="key ci .* has not the role promote"):
        write_as(tmp_path / "ci", client, model, "promoted")
    with another_user(tmp_path / "ci"), pytest.raises(NotAllowed, match="has not the role keys"):
        keys.add(ws, model, public_file(tmp_path / "friend"), "friend", ["register"])
    found = {key["name"]: key for key in keys.listed(ws, model)["keys"]}
    assert (found["ci"]["roles"], found["ci"]["you"], found["ci"]["state"]) == (["register"], False, "trusted")
    assert sum(key["you"] for key in found.values()) == 1


def test_a_revoked_key_signs_no_more_and_does_not_come_back(
    ws: Workspace, client: MlflowClient, model: str, tmp_path: Path
) -> None:
    bare_model(client, model)
    keys.add(ws, model, public_file(tmp_path / "ci"), "ci", ["register"])
    with pytest.raises(InputError, match="needs a reason"):
        keys.revoke(ws, model, "ci", " ")
    done = keys.revoke(ws, model, "ci", "it leaked")
    with pytest.raises(NotAllowed, match=f"key ci .* was revoked in entry {done['entry']}"):
        write_as(tmp_path / "ci", client, model, "registered")
    with pytest.raises(InputError, match="a key that was given up comes back"):
        keys.add(ws, model, public_file(tmp_path / "ci"), "ci", ["register"])
    with pytest.raises(InputError, match="was revoked already"):
        keys.revoke(ws, model, "ci", "again")


def test_the_last_key_manager_stays(ws: Workspace, client: MlflowClient, model: str) -> None:
    ledger = bare_model(client, model)
    before = ledger.entries()
    with pytest.raises(InputError, match="nobody could change the list any more"):
        keys.revoke(ws, model, fingerprint(public_key())[:16], "tired")
    assert ledger.entries() == before


def test_a_rotated_key_hands_over_name_and_roles(ws: Workspace, client: MlflowClient, model: str) -> None:
    ledger = bare_model(client, model)
    old, name = fingerprint(public_key()), ledger.entries()[0].actor
    done = keys.rotate(ws, model)
    new = fingerprint(public_key())
    assert new == done["key"] != old
    assert Path(done["old"]).is_file()
    assert key_file().stat().st_mode & 0o777 == 0o600
    entry = ledger.record("gate", "1", manifest_of("1"), {})
    assert (entry.key, entry.actor) == (new, name)
    assert [key["state"] for key in keys.listed(ws, model)["keys"]] == ["rotated", "trusted"]


def test_a_rotation_killed_behind_its_entry_is_finished(
    ws: Workspace, client: MlflowClient, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = bare_model(client, model)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(keys, "_exchange", killed)
        keys.rotate(ws, model)
    with pytest.raises(NotAllowed, match="was rotated in entry"):
        ledger.record("gate", "1", manifest_of("1"), {})
    count = len(ledger.entries())
    done = keys.rotate(ws, model)
    assert len(ledger.entries()) == count
    assert fingerprint(public_key()) == done["key"]
    ledger.record("gate", "1", manifest_of("1"), {})


def test_a_rotation_killed_before_every_call_is_done_once(
    ws: Workspace, client: MlflowClient, model: str, store: Store
) -> None:
    ledger = bare_model(client, model)
    for step in count(1):
        process = start(rotate_key, store.uri, ws, model, str(key_file()), step)
        process.join(120)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        before = len([entry for entry in ledger.entries() if entry.event == "key_rotated"])
        done = keys.rotate(ws, model)
        assert fingerprint(public_key()) == done["key"]
        rotations = [entry.details["key"]["public"] for entry in ledger.entries() if entry.event == "key_rotated"]
        assert len(rotations) - before in (0, 1)
        assert len(set(rotations)) == len(rotations)
        assert [key["state"] for key in keys.listed(ws, model)["keys"]].count("trusted") == 1
        ledger.record("gate", "1", manifest_of("1"), {})  # the key that lies there may sign
    assert step > 3


def test_a_key_added_twice_is_one_entry(ws: Workspace, client: MlflowClient, model: str, tmp_path: Path) -> None:
    ledger = bare_model(client, model)
    first = keys.add(ws, model, public_file(tmp_path / "ci"), "ci", ["register"])
    assert keys.add(ws, model, public_file(tmp_path / "ci"), "ci", ["register"]) == first
    assert [entry.event for entry in ledger.entries()].count("key_added") == 1


def test_a_list_that_is_written_down_is_what_ledgers_begin_with(
    ws: Workspace, client: MlflowClient, model: str, tmp_path: Path
) -> None:
    done = keys.start(ws, model)
    assert (done["written"], done["entry"]) == (True, None)
    assert read_json(ws.root / KEYS)["keys"] == done["keys"]
    with another_user(tmp_path / "stranger"), pytest.raises(NotAllowed, match=f"has not the role keys in {KEYS}"):
        Ledger.start(client, model, ws=ws)[0].record("gate", "1", manifest_of("1"), {})
    ledger = Ledger.open(client, model, ws)
    assert ledger.record("gate", "1", manifest_of("1"), {}).n == 1
    assert keys.start(ws, model) == {**done, "written": False, "entry": 0}


def test_a_ledger_that_strangers_began_is_not_that_of_the_written_list(
    ws: Workspace, client: MlflowClient, model: str, tmp_path: Path
) -> None:
    keys.start(ws, model)
    with another_user(tmp_path / "stranger"):
        bare_model(client, model)
    with pytest.raises(BrokenLedger, match=rf"it begins with the keys stranger .*, and .*{KEYS} lists"):
        Ledger.open(client, model, ws).chain()


def test_what_is_no_public_key_is_refused(ws: Workspace, client: MlflowClient, model: str, tmp_path: Path) -> None:
    bare_model(client, model)
    file = public_file(tmp_path / "ci")
    with pytest.raises(InputError, match="expected --name NAME and --role of register, promote, keys"):
        keys.add(ws, model, file, "ci", ["admin"])
    with pytest.raises(InputError, match="expected --name NAME"):
        keys.add(ws, model, file, "", ["register"])
    (tmp_path / "private.pem").write_bytes(key_file().read_bytes())
    with pytest.raises(InputError, match="holds a private key"):
        keys.add(ws, model, tmp_path / "private.pem", "ci", ["register"])
    (tmp_path / "text.pem").write_text(json.dumps({}))
    with pytest.raises(InputError, match="no public key"):
        keys.add(ws, model, tmp_path / "text.pem", "ci", ["register"])
    with pytest.raises(InputError, match="cannot be read"):
        keys.add(ws, model, tmp_path / "none.pem", "ci", ["register"])
