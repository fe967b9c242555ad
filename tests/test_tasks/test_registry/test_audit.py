"""A model's whole history in one file, checked without MLflow; and whatever in it is changed."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dass.errors import InputError
from dass.files import read_json, sha256_file, write_json
from tasks.evaluation.stages import evaluate_pruned
from tasks.promotion.decision import decide, go_back
from tasks.promotion.decision import prove as prove_for
from tasks.pruning.stages import materialize, prune
from tasks.registry import keys
from tasks.registry.audit import Audit, audit
from tasks.registry.audit_archive import FORMAT, write_archive
from tasks.registry.audit_bundle import export_audit
from tasks.registry.chain import checked_chain
from tasks.registry.entry import NOTHING, parse, sealed
from tasks.registry.key_file import dsse_signer, fingerprint, public_key
from tasks.registry.keyring import ROLES, Key
from tasks.registry.registration import register
from tasks.registry.signing import sign
from tasks.registry.timeline import plain
from tasks.registry.trust import KEYS, write_keys
from tasks.registry.versions import version_numbered
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Promote
from tests.forgeries import altered, another_user, strangers_signer
from tests.stores import Store
from tests.test_tasks.test_promotion.test_verification import PROVENANCE
from tests.workspaces import change_settings, copy_workspace

ROOT = Path(__file__).parents[3]
GENEROUS, STRICT = Promote(max_ratio=100.0, margin=10.0), Promote(max_ratio=0.001, margin=10.0)
MODEL = "audited"
REASON = "a demo [bold]on Friday[/] \x1b[31m\u202e"
BARRED = """
import sys
class Barred:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mlflow", "prefect", "dvc", "torch", "transformers", "sqlalchemy"):
            raise ImportError(name + " is barred")
sys.meta_path.insert(0, Barred())
from flows.cli.main import main
sys.argv = ["dass", *sys.argv[1:]]
main()
"""


@pytest.fixture(scope="module")
def made(
    finished_template: Workspace, tmp_path_factory: pytest.TempPathFactory, _sqlite_store: Store
) -> Iterator[tuple[Workspace, Path]]:
    """run, promote, run, refuse, force, rollback, key rotation, promote; and what export-audit wrote of it."""
    folder = tmp_path_factory.mktemp("audited")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", _sqlite_store.uri)
        patch.setenv("DASS_SIGNING_KEY", str(folder / "own" / "signing-key.pem"))
        patch.setenv("DASS_KEY_NAME", "alice")
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        ws = copy_workspace(finished_template, folder / "ws")
        register(ws, change_settings(ws, register__model=MODEL), PROVENANCE)
        assert decide(ws, MODEL, "1", GENEROUS, prove_for(ws, MODEL, "1", GENEROUS)).promoted
        settings = change_settings(ws, prune__pattern="2:4", register__model=MODEL, register__artifact="masks")
        for stage in (prune, materialize, evaluate_pruned):
            stage(ws, settings)
        register(ws, settings, PROVENANCE)
        proof = prove_for(ws, MODEL, "2", STRICT)
        assert not decide(ws, MODEL, "2", STRICT, proof).promoted
        assert decide(ws, MODEL, "2", STRICT, proof, force=True, reason=REASON).forced
        go_back(ws, MODEL, "the demo is over", None)
        keys.rotate(ws, MODEL)
        assert decide(ws, MODEL, "2", GENEROUS, proof).promoted
        file = folder / "history.zip"
        assert export_audit(ws, MODEL, file)["faults"] == []
        yield ws, file


@pytest.fixture
def ws(made: tuple[Workspace, Path], _sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The workspace, and its user."""
    folder = made[0].root.parent
    monkeypatch.setenv("DASS_SIGNING_KEY", str(folder / "own" / "signing-key.pem"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", _sqlite_store.uri)
    return made[0]


@pytest.fixture
def bundle(made: tuple[Workspace, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle, with an auditor who never saw it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Path(shutil.copy(made[1], tmp_path / "history.zip"))


def contents(bundle: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(bundle) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def check(bundle: Path, changed: dict[str, bytes]) -> Audit:
    write_archive(bundle, changed)
    return audit(bundle)


def run_barred(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(cwd), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-P", "-c", BARRED, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


def test_a_history_is_checked_where_there_is_no_mlflow(bundle: Path, tmp_path: Path) -> None:
    done = run_barred("audit", "history.zip", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    rows = [words[4] for words in lines if len(words) > 5 and words[0].isdigit()]  # n, day, hour, actor, event, ...
    wanted = ["keys_started", "registered", "promoted", "registered", "refused", "promoted", "rolled_back"]
    kept = [event for event in rows if event not in ("gate", "verified")]
    assert kept == [*wanted, "key_rotated", "promoted"]
    assert "The champion is version 2." in done.stdout
    assert "The root is believed as the bundle names it" in done.stdout
    assert "the demo is over" in done.stdout
    assert not set(done.stdout) & {"\x1b", "\u202e"}
    assert "[bold]" in " ".join(done.stdout.split())
    assert [path.name for path in tmp_path.iterdir()] == ["history.zip"]  # nothing was written
    record = json.loads(run_barred("audit", "history.zip", "--json", cwd=tmp_path).stdout)
    assert (record["holds"], record["champion"], record["versions"]) == (True, "2", ["1", "2"])
    assert [key["state"] for key in record["keys"]] == ["rotated", "trusted"]
    forced = next(entry for entry in record["entries"] if entry["details"].get("forced"))
    assert forced["details"]["reason"] == REASON
    assert all(entry["actor"] == "alice" for entry in record["entries"])


def test_a_fault_is_told_there_with_status_1_and_what_is_no_bundle_with_2(bundle: Path, tmp_path: Path) -> None:
    files = contents(bundle)
    write_archive(bundle, {**files, "versions/1/README.md": files["versions/1/README.md"] + b" "})
    done = run_barred("audit", "history.zip", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "fault: versions/1/README.md differs from what was signed.\n")
    (tmp_path / "no.zip").write_bytes(b"nothing")
    done = run_barred("audit", "no.zip", cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_equal_histories_are_equal_bytes_and_nothing_is_overwritten(
    ws: Workspace, made: tuple[Workspace, Path], tmp_path: Path
) -> None:
    export_audit(ws, MODEL, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == made[1].read_bytes()
    with pytest.raises(InputError, match="is there already"):
        export_audit(ws, MODEL, tmp_path / "again.zip")
    assert list(tmp_path.iterdir()) == [tmp_path / "again.zip"]
    assert not any(name.endswith(".safetensors") for name in contents(made[1]))


FLIPPED = [
    ("ledger/000001.json", "entry 1 was edited"),
    ("ledger/000000.json", "entry 0 was edited"),
    ("versions/1/dass/manifest.json", "versions/1/dass/manifest.json differs"),
    ("versions/2/dass/evaluation.json", "versions/2/dass/evaluation.json differs"),
    ("versions/2/dass/settings.json", "versions/2/dass/settings.json differs"),
    ("versions/1/dass/version.json", "versions/1/dass/version.json differs"),
    ("versions/2/README.md", "versions/2/README.md differs"),
    ("versions/1/dass/model.sig", "versions/1/dass/model.sig has the digest"),
]


@pytest.mark.parametrize(("name", "said"), FLIPPED)
def test_a_flipped_byte_is_named(bundle: Path, name: str, said: str) -> None:
    files = contents(bundle)
    for at in (0, len(files[name]) // 2, len(files[name]) - 1):
        content = bytearray(files[name])
        content[at] ^= 1
        faults = check(bundle, {**files, name: bytes(content)}).faults
        assert [said in fault for fault in faults] == [True], (at, faults)


def test_a_flipped_key_is_named(bundle: Path) -> None:
    files = contents(bundle)
    for name in [name for name in files if name.startswith("keys/")]:
        (fault,) = check(bundle, {**files, name: files[name].replace(b"A", b"B", 1)}).faults
        assert fault.startswith(f"{name} is not the key")


def test_any_byte_of_bundle_json_counts_but_the_stores_name(bundle: Path) -> None:
    files = contents(bundle)
    whole = files["bundle.json"]
    said = json.loads(whole)
    start = whole.index(said["store"].encode())
    missed = []
    for at in [*range(0, start, 2), *range(start + len(said["store"]), len(whole), 2)]:
        content = bytearray(whole)
        content[at] ^= 1
        try:
            same = json.loads(content.decode()) == said  # white space
        except ValueError:
            same = False
        try:
            faults = check(bundle, {**files, "bundle.json": bytes(content)}).faults
        except InputError as error:
            faults = [str(error)]
        if not faults and not same:
            missed.append(at)
    assert missed == []


def test_a_byte_flipped_behind_the_zips_back_is_named(bundle: Path) -> None:
    content = bytearray(bundle.read_bytes())
    content[content.index(b"# ", content.index(b"versions/1/README.md"))] ^= 1
    bundle.write_bytes(content)
    assert audit(bundle).faults == ["versions/1/README.md is damaged: it is not what was put into the bundle."]


def test_whatever_is_taken_out_is_named(bundle: Path) -> None:
    files = contents(bundle)
    for name in files.keys() - {"bundle.json"}:
        (fault,) = check(bundle, {other: content for other, content in files.items() if other != name}).faults
        assert name in fault


def test_whatever_is_put_in_is_named(bundle: Path) -> None:
    files, extra = contents(bundle), f"ledger/{len(contents(bundle)):06d}.json"
    for name in ("versions/1/dass/masks.safetensors", "versions/3/README.md", "keys/me.pem", extra, "note.txt"):
        (fault,) = check(bundle, {**files, name: b"mine"}).faults
        assert fault.startswith(f"{name} is extra")


def test_versions_that_were_swapped_are_named(bundle: Path) -> None:
    files = contents(bundle)
    swapped = {re.sub("versions/[12]", lambda v: f"versions/{3 - int(v[0][-1])}", name): files[name] for name in files}
    faults = check(bundle, swapped).faults
    assert [fault[:25] for fault in faults] == ["versions/1/dass/model.sig", "versions/2/dass/model.sig"]


def test_an_entry_that_is_missing_changed_or_moved_with_all_that_follows_is_named(
    bundle: Path, ws: Workspace, tmp_path: Path
) -> None:
    files = contents(bundle)
    lines = [files[name].decode() for name in sorted(files) if name.startswith("ledger/")]
    said = json.loads(files["bundle.json"])
    others = {name: content for name, content in files.items() if not name.startswith("ledger/")}

    def faults(lines: list[str]) -> list[str]:
        head = {"n": len(lines) - 1, "digest": parse(lines[-1]).digest}
        ledger = {f"ledger/{n:06d}.json": line.encode() for n, line in enumerate(lines)}
        return check(bundle, {**others, **ledger, "bundle.json": json.dumps({**said, "head": head}).encode()}).faults

    assert "entry 4 holds the line of entry 5: lines were moved" in faults([*lines[:4], *lines[5:]])[0]
    assert "entry 2 holds the line of entry 3" in faults([*lines[:2], lines[3], lines[2], *lines[4:]])[0]
    last = parse(lines[-1])
    forged = altered(lines[-1], details={**last.details, "reason": "so I said"})
    assert f"entry {last.n} (promoted) was edited or forged" in faults([*lines[:-1], forged])[0]
    with another_user(tmp_path / "stranger"):
        stranger = dsse_signer()
    appended = altered(lines[-1], stranger, n=last.n + 1, before=last.digest)
    assert f"entry {last.n + 1} (promoted) was not written by one who may" in faults([*lines, appended])[0]


def test_a_file_that_was_deleted_is_told_and_no_fault(bundle: Path) -> None:
    files = contents(bundle)
    said = json.loads(files["bundle.json"])
    said["versions"]["1"] = []
    said["versions"]["2"].remove("dass/evaluation.json")
    kept = {
        name: content
        for name, content in files.items()
        if not name.startswith("versions/1/") and name != "versions/2/dass/evaluation.json"
    }
    found = check(bundle, {**kept, "bundle.json": json.dumps(said).encode()})
    assert found.faults == []
    assert [note[:9] for note in found.notes] == ["Version 1", "Version 2"]
    said["versions"]["2"].remove("dass/model.sig")  # what then vouches for the rest?
    found = check(
        bundle,
        {name: kept[name] for name in kept if "2/dass/model.sig" not in name}
        | {"bundle.json": json.dumps(said).encode()},
    )
    assert found.faults == ["versions/2/dass/model.sig is missing from the bundle."]


def test_a_version_deleted_from_mlflow_is_left_out(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_the_first(client: Any, model: str, number: str) -> Any:
        return version_numbered(client, model, "77" if number == "1" else number)

    monkeypatch.setattr("tasks.registry.audit_bundle.version_numbered", without_the_first)
    done = export_audit(ws, MODEL, tmp_path / "history.zip")
    assert (done["versions"], done["faults"]) == (["2"], [])
    assert done["notes"] == ["Version 1: its files were deleted, or left out. Its entries hold."]


def test_who_is_trusted_can_be_pinned(bundle: Path, ws: Workspace, tmp_path: Path) -> None:
    found = audit(bundle)
    assert found.chain is not None
    (root,) = found.roots
    assert audit(bundle, root=root.fingerprint).trusted == "The root is pinned by --root."
    (fault,) = audit(bundle, root=fingerprint(public_key())).faults  # the one that follows it
    assert "ledger/000000.json was signed by key" in fault
    pinned = Workspace(tmp_path / "pinned")
    pinned.root.mkdir()
    write_keys(pinned, [root])
    assert audit(bundle, pinned.root / KEYS, root.fingerprint).faults == []
    write_keys(pinned, [found.chain.keyring.keys[fingerprint(public_key())]])
    (fault,) = audit(bundle, pinned.root / KEYS).faults
    assert "begins the ledger with the keys alice" in fault
    with pytest.raises(InputError, match="64 hex digits"):
        audit(bundle, root=root.fingerprint[:16])
    with pytest.raises(InputError, match="There is no"):
        audit(bundle, tmp_path / "none.keys")


def test_what_was_seen_of_the_ledger_before_is_compared(
    ws: Workspace, made: tuple[Workspace, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copy(made[1], tmp_path / "history.zip"))
    config = tmp_path / "config"
    shutil.copytree(ws.root.parent / "config", config)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(config))
    found = audit(bundle)
    assert (found.faults, found.notes) == ([], [])
    assert found.trusted.startswith("The root is the one that this user has seen before")
    (record,) = (config / "dass" / "trusted").glob("*.json")
    seen = read_json(record)
    record.write_text(json.dumps({**seen, "digest": "0" * 64}))
    (fault,) = audit(bundle).faults
    assert f"entry {seen['n']} was rewritten" in fault
    record.write_text(json.dumps({**seen, "n": seen["n"] + 2}))
    found = audit(bundle)
    assert found.faults == []
    assert "it was written before that, or its end was cut off" in found.notes[0]
    record.write_text(json.dumps({**seen, "root": "0" * 64}))
    assert "it is another one than" in audit(bundle).faults[0]


def a_zip(path: Path, *entries: tuple[zipfile.ZipInfo, bytes], **how: Any) -> Path:
    with zipfile.ZipFile(path, "w", **how) as archive:
        for entry, content in entries:
            archive.writestr(entry, content)
    return path


def plain_file(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, mode << 16
    return entry


def deflated(name: str) -> zipfile.ZipInfo:
    entry = plain_file(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([(plain_file("/etc/passwd"), b"")], "holds the name '/etc/passwd'"),
        ([(plain_file("versions/../../x"), b"")], "holds the name"),
        ([(plain_file("a\\b"), b"")], "holds the name"),
        ([(plain_file("a\x1b[31m"), b"")], r"holds the name 'a\\x1b"),
        ([(plain_file("x" * 201), b"")], "holds the name|lists 1 files"),
        ([(plain_file("link", 0o120777), b"/etc/passwd")], "holds link, which is no plain file"),
        ([(deflated("bundle.json"), bytes(1 << 20))], "holds bundle.json compressed"),
        ([(plain_file("bundle.json"), bytes((16 << 20) + 1))], "holds bundle.json with 16777217 bytes"),
        ([(plain_file("note.txt"), b"")], "holds no bundle.json"),
        ([(plain_file("bundle.json"), b"{}")], "is damaged, or of another dass"),
        ([(plain_file("bundle.json"), b"[" * 100_000)], "is damaged, or of another dass"),
    ],
)
def test_a_zip_that_is_no_bundle_is_refused_before_it_is_read(
    tmp_path: Path, entries: list[tuple[zipfile.ZipInfo, bytes]], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        audit(a_zip(tmp_path / "no.zip", *entries))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_come_twice_and_bytes_that_no_name_has_are_refused(bundle: Path, tmp_path: Path) -> None:
    twice = a_zip(tmp_path / "twice.zip", *[(plain_file("bundle.json"), b"{}")] * 2)
    with pytest.raises(InputError, match=r"holds bundle\.json twice"):
        audit(twice)
    whole = bundle.read_bytes()
    damages: list[tuple[Callable[[bytes], bytes], str]] = [
        (lambda whole: b"#!/bin/sh\n" + whole, "holds more or less"),
        (lambda whole: whole + b"more", "does not end as a zip"),
        (lambda whole: whole[:-30], "does not end as a zip"),
        (lambda whole: b"", "does not end as a zip"),
        (lambda whole: whole[:-12] + b"\xff\xff\xff\x7f" + whole[-8:], "lists .* files in"),
    ]
    for damage, said in damages:
        bundle.write_bytes(damage(whole))
        with pytest.raises(InputError, match=said):
            audit(bundle)
    with pytest.raises(InputError, match="There is no"):
        audit(tmp_path / "none.zip")
    with pytest.raises(InputError, match="is no file"):
        audit(tmp_path)


def test_an_entry_is_checked_with_the_documented_commands_alone(bundle: Path, tmp_path: Path) -> None:
    if not all(shutil.which(tool) for tool in ("bash", "unzip", "jq", "openssl")):
        pytest.skip("needs bash, unzip, jq and openssl")
    page = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    files = contents(bundle)
    entry = parse(files["ledger/000003.json"].decode())

    def typed() -> subprocess.CompletedProcess[str]:
        shutil.rmtree(tmp_path / "history", ignore_errors=True)
        script = "\n".join(blocks)
        return subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)

    done = typed()
    assert done.stderr == ""
    assert "Verified OK" in done.stdout
    assert f"{entry.key}  -\n" in done.stdout
    assert done.stdout.count(entry.before) == 3
    assert "  dass/manifest.json\n" in done.stdout
    write_archive(bundle, {**files, "ledger/000003.json": altered(entry.line, time="2030-01-01").encode()})
    assert "Verification failure" in typed().stdout + typed().stderr


def test_texts_of_strangers_do_nothing_to_a_terminal() -> None:
    assert plain("a\x1b]0;x\x07\x9b\u202e\nü") == "a\\x1b]0;x\\x07\\x9b\\u202e\\nü"


def test_what_nobody_vouches_for_any_more_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 1's key was revoked, version 2 is as it should be."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    lines: list[str] = []
    files: dict[str, bytes] = {}
    own, ci = Key("me", fingerprint(public_key()), public_key(), ROLES), strangers_signer(tmp_path / "ci")
    theirs = Key("ci", ci.public_key.keyid, str(ci.public_key.keyval["public"]), ("register",))

    def write(signer: Any, event: str, version: str, about: str, details: dict[str, Any]) -> None:
        before = parse(lines[-1]).digest if lines else NOTHING
        lines.append(sealed(signer, len(lines), before, event, "tiny", version, about, details).line)

    write(dsse_signer(), "keys_started", "", own.fingerprint, {"keys": [own.as_json(), theirs.as_json()]})
    for version, signer in (("1", ci), ("2", dsse_signer())):
        folder = tmp_path / version
        (folder / "dass").mkdir(parents=True)
        (folder / "dass/manifest.json").write_text(version)
        named = {"model": "tiny", "registration": version, "manifest": sha256_file(folder / "dass/manifest.json")}
        write_json(folder / "dass/version.json", named)
        sign(folder, signer)
        details = {"registration": version, "signature": sha256_file(folder / "dass/model.sig")}
        write(signer, "registered", version, named["manifest"], details)
        files |= {f"versions/{version}/dass/{path.name}": path.read_bytes() for path in (folder / "dass").iterdir()}
    write(dsse_signer(), "key_revoked", "", theirs.fingerprint, {"reason": "it leaked", "name": "ci"})
    chain = checked_chain("tiny", lines)
    assert chain.root is not None
    versions = {
        version: [f"dass/{name}" for name in ("manifest.json", "model.sig", "version.json")] for version in "12"
    }
    head = {"n": len(lines) - 1, "digest": chain.entries[-1].digest}
    said = {
        "format": FORMAT,
        "model": "tiny",
        "store": "there",
        "head": head,
        "root": chain.root.digest,
        "versions": versions,
    }
    files |= {f"ledger/{n:06d}.json": line.encode() for n, line in enumerate(lines)}
    files |= {f"keys/{key.name}-{key.fingerprint[:16]}.pem": key.public.encode() for key in (own, theirs)}
    whole = {**files, "bundle.json": json.dumps(said).encode()}
    found = check(tmp_path / "history.zip", whole)
    assert found.faults == []
    assert found.notes == [f"Version 1 was registered with key {theirs.told}, revoked in entry 3."]
    changed = {**said, "versions": {**versions, "2": []}, "head": {**head, "digest": "0" * 64}}
    kept = {name: content for name, content in whole.items() if not name.startswith("versions/2/")}
    found = check(tmp_path / "history.zip", {**kept, "bundle.json": json.dumps(changed).encode()})
    assert found.faults == ["bundle.json names another last entry than ledger/000003.json."]
    assert found.notes[-1].startswith("Version 2: its files were deleted, or left out")
