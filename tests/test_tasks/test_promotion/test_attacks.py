"""What somebody with write access to store and files may try, on SQLite and on a server with Postgres.

Each attack is undone when its context ends. Those on lines of the ledger, by one who never saw it, are in test_ledger.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from dass.files import canonical_json
from tasks.promotion.decision import decide, go_back, number_of
from tasks.promotion.decision import prove as prove_for
from tasks.promotion.diff import diff
from tasks.promotion.history import history
from tasks.promotion.verification import verify_version
from tasks.registry import keys
from tasks.registry.chain import BrokenLedger
from tasks.registry.checked import ForeignChampion
from tasks.registry.entry import sealed
from tasks.registry.key_file import dsse_signer, public_key
from tasks.registry.ledger import HEAD, Ledger
from tasks.registry.ledger_run import TAG
from tasks.registry.loading import load, materialize_registered
from tasks.registry.place import local_path
from tasks.registry.registration import register
from tasks.registry.show import show
from tasks.registry.signing import SignatureError, sign
from tasks.registry.tracking import tracking
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Promote, load_settings
from tests.forgeries import altered, another_user
from tests.stores import Store
from tests.test_tasks.test_promotion.test_verification import PROVENANCE
from tests.workspaces import change_settings, copy_workspace

RULES = Promote(max_ratio=100.0, margin=10.0)
REFUSALS = (BrokenLedger, SignatureError, ForeignChampion)


@dataclass(frozen=True)
class World:
    """Version 1 is the champion, version 2 the challenger.

    Attributes:
        store: where.
        ws: a workspace on it.
        model: registered model.
        client: MLflow.
        folders: of both versions, in the store itself.
    """

    store: Store
    ws: Workspace
    model: str
    client: MlflowClient
    folders: dict[str, Path]

    @property
    def ledger(self) -> Ledger:
        return Ledger.open(self.client, self.model, self.ws)

    def line(self, n: int) -> str:
        return str(self.client.get_run(self.ledger.run_id).data.params[f"entry.{n:06d}"])


def stored(store: Store, client: MlflowClient, model: str, version: str) -> Path:
    made = client.get_model_version(model, version)
    location = client.get_logged_model(made.source.removeprefix("models:/")).artifact_location
    return local_path(location) or store.workspace.root / "server" / location.removeprefix("mlflow-artifacts:/")


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def world(
    request: pytest.FixtureRequest, results: list[Workspace], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    store: Store = request.getfixturevalue(f"_{request.param}_store")
    model = f"attacked {uuid.uuid4().hex}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store.uri)
        for result, pattern in zip(results, ("unstructured", "2:4"), strict=True):
            ws = copy_workspace(result, tmp_path_factory.mktemp("world") / "ws")
            register(ws, change_settings(ws, prune__pattern=pattern, register__model=model), PROVENANCE)
        assert decide(ws, model, "1", RULES, prove_for(ws, model, "1", RULES)).promoted
        with tracking(ws) as client:
            folders = {number: stored(store, client, model, number) for number in "12"}
            yield World(store, ws, model, client, folders)


def doors(world: World, version: str, target: Path) -> dict[str, Callable[[], Any]]:
    ws, model = world.ws, world.model

    def promote() -> Any:
        number = number_of(ws, model, version)
        proof = prove_for(ws, model, number, RULES)
        decision = decide(ws, model, number, RULES, proof, force=True, reason="I insist")
        if not decision.promoted:
            assert proof is not None
            raise SignatureError("; ".join(step.told for step in proof.steps if step.passed is False))

    def verify() -> None:
        proof = verify_version(ws, model, version)
        if proof.failed:
            raise SignatureError("; ".join(step.told for step in proof.steps if step.passed is False))

    return {
        "load": lambda: load(f"models:/{model}{'/' if version.isdecimal() else '@'}{version}"),
        "materialize": lambda: materialize_registered(ws, model, version, target),
        "verify": verify,
        "promote": promote,
        "show": lambda: show(ws, version),
        "diff": lambda: diff(ws, model, "1", version),
    }


WHOLE = ("load", "materialize", "verify", "promote")
"""Doors that use every file."""
RECORDS = (*WHOLE, "show", "diff")
"""Those that use the records, too."""


def check_refused(world: World, names: tuple[str, ...], tmp_path: Path, said: str, version: str = "2") -> None:
    """Every door refuses, says why, and changes nothing."""
    before = [entry.digest for entry in world.ledger.entries()] if version == "2" else None
    for name in names:
        with pytest.raises(REFUSALS) as caught:
            doors(world, version, tmp_path / "out")[name]()
        assert said in str(caught.value), (name, str(caught.value))
    assert not (tmp_path / "out").exists()
    if before is not None:
        entries = world.ledger.entries()
        assert [entry.digest for entry in entries[: len(before)]] == before
        assert not [entry for entry in entries[len(before) :] if entry.event in ("promoted", "rolled_back", "verified")]


# Files


@contextmanager
def changed(world: World, change: Callable[[Path, World], None]) -> Generator[None]:
    """Version 2's folder while it is another one."""
    folder = world.folders["2"]
    kept = folder.with_name(f"{folder.name}.kept")
    shutil.copytree(folder, kept)  # copies: what is linked elsewhere stays as it is
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    try:
        change(folder, world)
        yield
    finally:
        shutil.rmtree(folder)
        kept.rename(folder)


def edit(name: str, key: str = "a", value: Any = "b") -> Callable[[Path, World], None]:
    def change(folder: Path, _: World) -> None:
        values = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(values | {key: value}))

    return change


def add(name: str) -> Callable[[Path, World], None]:
    def change(folder: Path, _: World) -> None:
        (folder / name).write_text("more")

    return change


def exchange(folder: Path, world: World) -> None:
    shutil.rmtree(folder)
    shutil.copytree(world.folders["1"], folder)


def exchange_masks(folder: Path, world: World) -> None:
    shutil.copyfile(world.folders["1"] / "dass/masks.safetensors", folder / "dass/masks.safetensors")


def exchange_weights(folder: Path, world: World) -> None:
    shutil.copyfile(world.folders["1"] / "model/model.safetensors", folder / "model/model.safetensors")


def sign_again(folder: Path, world: World) -> None:
    edit("model/config.json", "rope_theta", 1.0)(folder, world)
    (folder / "dass/model.sig").unlink()
    sign(folder)


def sign_again_as_a_stranger(folder: Path, world: World) -> None:
    with another_user(folder.parent / "stranger"):
        sign_again(folder, world)


@pytest.mark.parametrize(
    ("change", "refused_by", "said"),
    [
        (exchange, RECORDS, "the folder is another version's, or was signed again"),
        (sign_again, RECORDS, "the folder is another version's, or was signed again"),
        (sign_again_as_a_stranger, RECORDS, "the folder is another version's, or was signed again"),
        (edit("dass/evaluation.json", "ratio", 1.0), RECORDS, "dass/evaluation.json"),
        (edit("dass/manifest.json"), RECORDS, "dass/manifest.json"),
        (edit("dass/version.json", "model", "another"), RECORDS, "dass/version.json"),
        (edit("dass/settings.json"), (*WHOLE, "diff"), "dass/settings.json"),
        (edit("model/config.json", "rope_theta", 1.0), WHOLE, "model/config.json"),
        (edit("model/generation_config.json", "temperature", 9.0), WHOLE, "model/generation_config.json"),
        (edit("model/tokenizer_config.json"), WHOLE, "model/tokenizer_config.json"),
        (edit("components/tokenizer/tokenizer.json"), WHOLE, "components/tokenizer/tokenizer.json"),
        (add("model/chat_template.jinja"), WHOLE, "model/chat_template.jinja"),
        (add("README.md"), WHOLE, "README.md"),
        (exchange_masks, (*WHOLE, "diff"), "dass/masks.safetensors"),
        (exchange_weights, WHOLE, "model/model.safetensors"),
    ],
    ids=lambda value: getattr(value, "__qualname__", None) if callable(value) else None,
)
def test_a_changed_file_is_refused_at_every_door(
    world: World, change: Callable[[Path, World], None], refused_by: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    with changed(world, change):
        check_refused(world, refused_by, tmp_path, said)


def test_a_file_that_is_changed_while_it_is_read_is_told(world: World, tmp_path: Path) -> None:
    from tasks.registry.checked import checked_version

    with (
        changed(world, lambda *_: None),
        pytest.raises(SignatureError, match=r"model/config\.json of .* was changed while it was read"),
        checked_version(world.client, world.model, "2", world.ws).folder() as folder,
    ):
        if world.store.kind == "sqlite":
            edit("model/config.json")(world.folders["2"], world)
        else:
            edit("model/config.json")(folder, world)  # the copy that was fetched


# What MLflow's database says of versions


@contextmanager
def swapped_sources(world: World) -> Generator[None]:
    sources = {number: world.client.get_model_version(world.model, number).source for number in "12"}
    sql = "UPDATE model_versions SET source = ? WHERE name = ? AND version = ?"

    def put(one: str, two: str) -> None:
        for number, source in (("1", one), ("2", two)):
            assert world.store.execute(sql, source, world.model, int(number)) == 1

    put(sources["2"], sources["1"])
    try:
        yield
    finally:
        put(sources["1"], sources["2"])


def test_swapped_sources_are_refused_at_every_door(world: World, tmp_path: Path) -> None:
    with swapped_sources(world):
        check_refused(world, RECORDS, tmp_path, "the folder is another version's, or was signed again")


def test_forged_tags_mean_nothing(world: World) -> None:
    before, shown = history(world.ws, world.model), show(world.ws, "2")
    kept = dict(world.client.get_model_version(world.model, "2").tags)
    forged = {"ratio": "1.0", "method": "[red]\x1b[2J", "registration": "0" * 64, "manifest": "0" * 64}
    forged |= {"key": "0" * 64, "pattern": "x", "masks": "0" * 64, "base": "0" * 64, "git_dirty": "false"}
    for name, value in forged.items():
        world.client.set_model_version_tag(world.model, "2", name, value)
    world.client.set_registered_model_tag(world.model, f"key.{'0' * 16}", "a key")
    try:
        assert history(world.ws, world.model) == before
        assert show(world.ws, "2") == shown
        assert not verify_version(world.ws, world.model, "2").failed
    finally:
        for name in forged:
            world.client.delete_model_version_tag(world.model, "2", name)
            if name in kept:
                world.client.set_model_version_tag(world.model, "2", name, kept[name])
        world.client.delete_registered_model_tag(world.model, f"key.{'0' * 16}")


def test_forged_names_and_descriptions_mean_nothing(world: World) -> None:
    client, made = world.client, world.client.get_model_version(world.model, "2")
    before, shown = history(world.ws, world.model), show(world.ws, "2")
    run, experiment = client.get_run(made.run_id), client.get_run(made.run_id).info.experiment_id
    logged = made.source.removeprefix("models:/")
    note, told = run.data.tags["mlflow.note.content"], f'dass.load("models:/{world.model}/VERSION") [red]\x1b[2J'
    points = client.get_logged_model(logged).tags["mlflow.modelVersions"]
    client.update_run(made.run_id, name="dass 2:4 #1")
    client.set_tag(made.run_id, "mlflow.note.content", told)
    client.log_metric(made.run_id, "ratio", 0.5)
    client.update_model_version(world.model, "2", told)
    client.set_logged_model_tags(logged, {"mlflow.modelVersions": "no JSON"})
    client.set_experiment_tag(experiment, "mlflow.experimentKind", "genai_development")
    try:
        assert history(world.ws, world.model) == before
        assert show(world.ws, "2") == shown
        assert not verify_version(world.ws, world.model, "2").failed
        assert not register(world.ws, load_settings(world.ws.params), PROVENANCE).created
    finally:
        client.update_run(made.run_id, name=run.info.run_name)
        client.set_tag(made.run_id, "mlflow.note.content", note)
        client.update_model_version(world.model, "2", made.description)
        client.set_logged_model_tags(logged, {"mlflow.modelVersions": points})


@contextmanager
def alias_on(world: World, version: str | None) -> Generator[None]:
    if version is None:
        world.client.delete_registered_model_alias(world.model, "champion")
    else:
        world.client.set_registered_model_alias(world.model, "champion", version)
    try:
        yield
    finally:
        world.client.set_registered_model_alias(world.model, "champion", "1")


def test_an_alias_set_by_hand_is_refused_at_every_door(world: World, tmp_path: Path) -> None:
    with alias_on(world, "2"):
        check_refused(world, ("load", "materialize", "show", "verify"), tmp_path, "champion is version 1", "champion")
        with pytest.raises(ForeignChampion, match="champion is version 1"):
            history(world.ws, world.model)
        with pytest.raises(ForeignChampion, match="champion is version 1"):
            decide(world.ws, world.model, "2", RULES, None, force=True, reason="I insist")
        with pytest.raises(ForeignChampion, match="champion is version 1"):
            go_back(world.ws, world.model, "I insist", None)


def test_a_missing_alias_is_put_back_by_what_the_ledger_says(world: World) -> None:
    with alias_on(world, None):
        assert "it is on version 1 again" in history(world.ws, world.model)["repaired"]
        load(f"models:/{world.model}@champion")


def test_an_alias_that_moves_between_proof_and_decision_changes_nothing(world: World) -> None:
    number = number_of(world.ws, world.model, "challenger")
    proof = prove_for(world.ws, world.model, number, RULES)
    world.client.set_registered_model_alias(world.model, "challenger", "1")
    try:
        decision = decide(world.ws, world.model, number, Promote(max_ratio=0.001), proof)
        assert (decision.version, decision.promoted) == ("2", False)
    finally:
        world.client.set_registered_model_alias(world.model, "challenger", "2")


# The ledger


@contextmanager
def appended(world: World, line: str) -> Generator[None]:
    """One more line, written through MLflow as anybody can."""
    ledger = world.ledger
    n = len(ledger.entries())
    world.client.log_param(ledger.run_id, f"entry.{n:06d}", line, synchronous=True)
    try:
        yield
    finally:
        remove(world, ledger.run_id, n)


def remove(world: World, run_id: str, n: int) -> None:
    sql = "DELETE FROM params WHERE run_uuid = ? AND key = ?"
    assert world.store.execute(sql, run_id, f"entry.{n:06d}") == 1


def crowning(world: World, signer: Any) -> str:
    last = world.ledger.entries()[-1]
    manifest = world.ledger.chain().registered("2")
    assert manifest is not None
    details = {"forced": False, "reason": None, "previous": "1"}
    return sealed(signer, last.n + 1, last.digest, "promoted", world.model, "2", manifest.manifest, details).line


def unsigned(world: World, _: Path) -> str:
    entry = world.ledger.entries()[-1]
    values = {name: getattr(entry, name) for name in ("id", "time", "model")}
    values |= {"n": entry.n + 1, "actor": "a@b", "event": "promoted", "version": "2", "manifest": "0" * 64}
    return canonical_json(values | {"details": {}, "before": entry.digest})


def by_a_stranger(world: World, folder: Path) -> str:
    with another_user(folder / "stranger"):
        return crowning(world, dsse_signer())


def by_a_key_without_the_role(world: World, folder: Path) -> str:
    with another_user(folder / "ci"):
        (folder / "ci").mkdir(exist_ok=True)
        (folder / "ci" / "public.pem").write_text(public_key())
        signer = dsse_signer()
    keys.add(world.ws, world.model, folder / "ci" / "public.pem", f"ci {folder.name}", ["register"])
    return crowning(world, signer)


def a_copy(world: World, _: Path) -> str:
    return world.line(len(world.ledger.entries()) - 2)


def a_copy_with_another_number(world: World, _: Path) -> str:
    entries = world.ledger.entries()
    promoted = next(entry for entry in entries if entry.event == "promoted")
    return altered(promoted.line, n=len(entries), before=entries[-1].digest)


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        (unsigned, "it is no line of a ledger"),
        (by_a_stranger, "is not in its list of keys"),
        (by_a_key_without_the_role, "has not the role promote"),
        (a_copy, "lines were moved"),
        (a_copy_with_another_number, "its signature does not hold"),
    ],
)
def test_a_forged_entry_is_refused_at_every_door(
    world: World, forge: Callable[[World, Path], str], said: str, tmp_path: Path
) -> None:
    with appended(world, forge(world, tmp_path)):
        for door in (*doors(world, "2", tmp_path / "out").values(), lambda: history(world.ws, world.model)):
            with pytest.raises(REFUSALS) as caught:
                door()
            assert said in str(caught.value)
        assert str(world.client.get_registered_model(world.model).aliases["champion"]) == "1"
    assert world.ledger.chain().champion == "1"


@contextmanager
def cut(world: World, heads_too: bool) -> Generator[None]:
    """The ledger without its last entry; and no version that remembers it."""
    entries = world.ledger.entries()
    run_id, last = world.ledger.run_id, entries[-1]
    remove(world, run_id, last.n)
    kept = {number: world.client.get_model_version(world.model, number).tags[HEAD] for number in "12"}
    if heads_too:
        for number in "12":
            about = [entry for entry in entries[:-1] if entry.version == number]
            world.client.set_model_version_tag(world.model, number, HEAD, about[-1].head)
    try:
        yield
    finally:
        world.client.log_param(run_id, f"entry.{last.n:06d}", last.line, synchronous=True)
        for number, head in kept.items():
            world.client.set_model_version_tag(world.model, number, HEAD, head)


@pytest.mark.parametrize("heads_too", [False, True], ids=["heads left", "heads too"])
def test_a_cut_ledger_is_refused_by_one_who_saw_it(world: World, heads_too: bool) -> None:
    world.ledger.record("verified", "2", world.ledger.chain().registered("2").manifest, {})  # type: ignore[union-attr]
    with cut(world, heads_too), pytest.raises(BrokenLedger, match="its end was cut off: entry"):
        history(world.ws, world.model)


@contextmanager
def rewritten(world: World, folder: Path) -> Generator[None]:
    """The same story in a ledger that a stranger wrote, who has no key of the list."""
    entries, run_id = world.ledger.entries(), world.ledger.run_id
    kept = {number: world.client.get_model_version(world.model, number).tags[HEAD] for number in "12"}
    with another_user(folder / "stranger"):
        false, _ = Ledger.start(world.client, f"{world.model} by a stranger")
        signer, lines, before = dsse_signer(), [], "0" * 64
        from tasks.registry.key_file import fingerprint
        from tasks.registry.keyring import ROLES, Key

        own = Key("stranger", fingerprint(public_key()), public_key(), ROLES)
        for entry in entries:
            details = {"keys": [own.as_json()]} if entry.event == "keys_started" else entry.details
            if entry.event == "key_added":
                details = {"key": details["key"]}
            manifest = own.fingerprint if entry.event == "keys_started" else entry.manifest
            line = sealed(signer, entry.n, before, entry.event, world.model, entry.version, manifest, details)
            lines.append(line)
            before = line.digest
        for line in lines:
            world.client.log_param(false.run_id, f"entry.{line.n:06d}", line.line, synchronous=True)
    world.client.set_registered_model_tag(world.model, TAG, false.run_id)
    for number in "12":
        last = [line for line in lines if line.version == number][-1]
        world.client.set_model_version_tag(world.model, number, HEAD, last.head)
    try:
        yield
    finally:
        world.client.set_registered_model_tag(world.model, TAG, run_id)
        for number, head in kept.items():
            world.client.set_model_version_tag(world.model, number, HEAD, head)


def test_a_ledger_rewritten_by_somebody_without_a_key_is_refused(world: World, tmp_path: Path) -> None:
    with rewritten(world, tmp_path):
        for door in (*doors(world, "2", tmp_path / "out").values(), lambda: history(world.ws, world.model)):
            with pytest.raises(REFUSALS, match="it is another one than"):
                door()


def test_a_deleted_ledger_run_is_told(world: World) -> None:
    run_id = world.ledger.run_id
    world.client.delete_run(run_id)
    try:
        with pytest.raises(BrokenLedger, match=f"mlflow runs restore --run-id {run_id}"):
            history(world.ws, world.model)
        with pytest.raises(BrokenLedger, match="mlflow runs restore"):
            load(f"models:/{world.model}/2")
    finally:
        world.client.restore_run(run_id)


def test_a_lost_tag_is_told(world: World) -> None:
    run_id = world.ledger.run_id
    world.client.delete_registered_model_tag(world.model, TAG)
    try:
        with pytest.raises(BrokenLedger, match="the model has no tag 'ledger'"):
            history(world.ws, world.model)
    finally:
        world.client.set_registered_model_tag(world.model, TAG, run_id)


# Worlds that do not outlive the attack


@pytest.fixture
def own(results: list[Workspace], store: Store, tmp_path: Path) -> tuple[Workspace, str]:
    """One registered version of a model of the test's own."""
    model = f"own {uuid.uuid4().hex}"
    ws = copy_workspace(results[0], tmp_path / "ws")
    register(ws, change_settings(ws, register__model=model), PROVENANCE)
    return ws, model


def test_a_version_of_a_key_that_was_revoked_since_is_refused(own: tuple[Workspace, str], tmp_path: Path) -> None:
    ws, model = own
    with another_user(tmp_path / "manager"):
        (tmp_path / "manager").mkdir(exist_ok=True)
        (tmp_path / "manager" / "public.pem").write_text(public_key())
    keys.add(ws, model, tmp_path / "manager" / "public.pem", "manager", ["register", "promote", "keys"])
    owner = next(key["name"] for key in keys.listed(ws, model)["keys"] if key["you"])
    with another_user(tmp_path / "manager"):
        keys.revoke(ws, model, owner, "it leaked")
        with pytest.raises(SignatureError, match="was revoked in entry"):
            decide(ws, model, "1", RULES, None, force=True, reason="I insist")
        with pytest.raises(SignatureError, match="was revoked in entry"):
            load(f"models:/{model}/1")
        assert "files" in verify_version(ws, model, "1").failed
        again = register(ws, change_settings(ws, register__model=model), PROVENANCE)
        assert (again.version, again.created) == ("2", True)
        assert decide(ws, model, "2", RULES, prove_for(ws, model, "2", RULES)).promoted


def test_a_model_deleted_and_made_again_by_a_stranger_is_refused(own: tuple[Workspace, str], tmp_path: Path) -> None:
    ws, model = own
    with tracking(ws) as client:
        client.delete_registered_model(model)
        with another_user(tmp_path / "stranger"):
            register(ws, change_settings(ws, register__model=model), PROVENANCE)
        with pytest.raises(BrokenLedger, match="it is another one than"):
            Ledger.open(client, model, ws).chain()
    with pytest.raises(BrokenLedger, match="it is another one than"):
        load(f"models:/{model}/1")


def test_a_model_deleted_and_made_again_by_its_owner_says_what_came_before(
    own: tuple[Workspace, str], caplog: pytest.LogCaptureFixture
) -> None:
    ws, model = own
    with tracking(ws) as client:
        lost = Ledger.open(client, model, ws).entries()
        client.delete_registered_model(model)
        register(ws, change_settings(ws, register__model=model), PROVENANCE)
        root = Ledger.open(client, model, ws).chain().root
    assert root is not None
    assert root.details["follows"] == {"root": lost[0].digest, "n": lost[-1].n, "digest": lost[-1].digest}
    assert f"with {len(lost)} entries, is gone" in caplog.text
