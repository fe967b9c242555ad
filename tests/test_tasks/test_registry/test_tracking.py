"""MLflow within bounds: servers and databases that hang, drip, are locked or are somebody else's."""

import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from dass.errors import InfrastructureError, InputError
from tasks.registry.place import follow_workspace
from tasks.registry.tracking import TrackingError, TrackingRefusal, check_reachable, tracking
from tasks.registry.versions import repository
from tasks.workspace.folder import Workspace
from tests.frozen import frozen_holder
from tests.peers import BAD, drips_its_body, peer, silent
from tests.servers import free_port

SECRET = "s3cr3t-w0rd"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASS_TIMEOUT", "0.6")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)


@pytest.mark.parametrize("behaviour", BAD, ids=lambda behaviour: str(behaviour.__name__))
def test_no_answer_is_waited_for_without_end(
    behaviour: Callable[[socket.socket], None], impatient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with peer(behaviour) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://kim:{SECRET}@127.0.0.1:{port}")
        began = time.monotonic()
        with pytest.raises(TrackingError) as caught, tracking(Workspace(tmp_path)) as client:
            client.search_experiments()
        assert time.monotonic() - began < 20
        assert not isinstance(caught.value, InputError)
        assert str(caught.value).startswith(f"MLflow at http://127.0.0.1:{port}: ")
        assert SECRET not in str(caught.value)


def test_a_download_that_stands_still_ends(impatient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with peer(drips_its_body) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        began = time.monotonic()
        with pytest.raises(InfrastructureError, match="no complete answer"), tracking(Workspace(tmp_path)) as client:
            files = repository(client, f"http://127.0.0.1:{port}/api/2.0/mlflow-artifacts/artifacts/1")
            files._download_file("weights", str(tmp_path / "weights"))
        assert time.monotonic() - began < 20


def test_an_upload_that_goes_on_may_take_longer_than_one_answer(
    impatient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads_slowly(line: socket.socket) -> None:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        left = 8 << 20
        while left > (1 << 17):
            left -= len(line.recv(1 << 17))
            time.sleep(0.02)
        line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    (tmp_path / "weights").write_bytes(bytes(8 << 20))
    with peer(reads_slowly) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        began = time.monotonic()
        with tracking(Workspace(tmp_path)) as client:
            files = repository(client, f"http://127.0.0.1:{port}/api/2.0/mlflow-artifacts/artifacts/1")
            files.log_artifact(str(tmp_path / "weights"))
        assert time.monotonic() - began > 0.6


def test_outside_of_our_calls_mlflow_waits_as_it_was_told(impatient: None, tmp_path: Path) -> None:
    def thinks(line: socket.socket) -> None:
        time.sleep(1)
        line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with peer(thinks) as port:
        assert list(mlflow.MlflowClient(f"http://127.0.0.1:{port}").search_experiments()) == []


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2"])
def test_a_database_that_accepts_and_hangs_is_told(
    scheme: str, impatient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with peer(silent) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://kim:{SECRET}@127.0.0.1:{port}/mlflow")
        for ask in (lambda ws: check_reachable(ws), lambda ws: tracking(ws).__enter__()):
            began = time.monotonic()
            with pytest.raises(InfrastructureError) as caught:
                ask(Workspace(tmp_path))
            assert time.monotonic() - began < 20
            assert SECRET not in str(caught.value)
            assert f"{scheme}://127.0.0.1:{port}/mlflow" in str(caught.value)


def test_a_password_in_a_query_is_not_told(impatient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql:///mlflow?host=127.0.0.1&port=9&password={SECRET}")
    with pytest.raises(InfrastructureError, match="MLFLOW_TRACKING_URI is postgresql:///mlflow and") as caught:
        check_reachable(Workspace(tmp_path))
    assert SECRET not in str(caught.value)


def test_a_locked_database_is_waited_for_and_then_named(
    impatient: None, migrated_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = Workspace(migrated_db.parent)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{migrated_db}")
    with closing(sqlite3.connect(migrated_db, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(InfrastructureError, match=r"server\.db: the database was locked for 0\.6 s by this"):
            tracking(ws).__enter__()
        other.execute("ROLLBACK")
        with tracking(ws) as client:
            client.search_experiments()
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TrackingError, match="locked for 0.6 s by this process") as caught, tracking(ws) as client:
            client.create_experiment("later")
        assert "INSERT" not in str(caught.value)
        monkeypatch.setenv("DASS_TIMEOUT", "20")
        threading.Timer(0.5, lambda: other.execute("ROLLBACK")).start()
        with tracking(ws) as client:
            client.create_experiment("later")


@pytest.mark.parametrize("embedded", [True, False])
def test_a_frozen_process_in_the_middle_of_a_write_is_named_and_then_forgotten(
    embedded: bool, impatient: None, migrated_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws, file = Workspace(migrated_db.parent), migrated_db
    if embedded:
        file = migrated_db.rename(ws.root / "mlflow.db")
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    with (
        frozen_holder(file, "writing") as pid,
        pytest.raises(InfrastructureError, match=rf"by process {pid} .*stopped: `kill -CONT {pid}`"),
        tracking(ws) as client,
    ):
        client.create_experiment("later")
    with tracking(ws) as client:
        client.create_experiment("later")


def test_a_copied_workspace_whose_database_is_locked_is_not_told_to_make_it_writable(
    impatient: None, migrated_db: Path
) -> None:
    root = migrated_db.parent / "first"
    root.mkdir()
    migrated_db.rename(root / "mlflow.db")
    with tracking(Workspace(root)) as client:
        client.create_experiment("here", artifact_location=(root / "mlartifacts" / "1").as_uri())
    moved = Workspace(root.rename(root.with_name("second")))
    (moved.root / "mlartifacts").mkdir(exist_ok=True)
    for what in ("writing", "alone"):
        with frozen_holder(moved.root / "mlflow.db", what) as pid:
            with pytest.raises(InfrastructureError, match=rf"locked for 0.6 s by process {pid}") as caught:
                follow_workspace(moved)
            assert not isinstance(caught.value, InputError)
    follow_workspace(moved)


def _not_a_database(file: Path) -> None:
    file.write_bytes(b"no database at all" * 100)


def _newer(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        database.commit()


def _older(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("UPDATE alembic_version SET version_num = '90e64c465722'")
        database.commit()


def _others(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE customers (name TEXT)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_not_a_database, "is no SQLite database"),
        (_newer, "newer MLflow"),
        (_older, "older MLflow.*mlflow db upgrade"),
        (_others, "not MLflow's .customers"),
    ],
)
def test_a_database_that_is_not_this_mlflows_is_refused_and_left_alone(
    change: Callable[[Path], None], message: str, migrated_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(migrated_db)
    before = migrated_db.read_bytes()
    ws = Workspace(migrated_db.parent)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{migrated_db}")
    with pytest.raises(InputError, match=message):
        tracking(ws).__enter__()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    migrated_db.rename(ws.root / "mlflow.db")
    with pytest.raises(InputError, match=message):
        check_reachable(ws)
    assert (ws.root / "mlflow.db").read_bytes() == before


def test_a_refusal_is_bad_input_and_an_outage_is_not(finished: Workspace) -> None:
    with pytest.raises(TrackingRefusal, match="Invalid model name"), tracking(finished) as client:
        client.create_registered_model("a/b")


def test_a_registry_that_is_not_there_is_told(
    impatient: None, finished: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with peer(silent) as port:
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"http://127.0.0.1:{port}")
        with pytest.raises(InfrastructureError, match=f"MLFLOW_REGISTRY_URI is http://127.0.0.1:{port} and cannot"):
            check_reachable(finished)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_a_deadline_that_is_none_is_refused(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASS_TIMEOUT", value)
    with pytest.raises(InputError, match=f"DASS_TIMEOUT is '{value}'"):
        tracking(Workspace(tmp_path)).__enter__()


@pytest.fixture
def closed_port() -> int:
    return free_port()


def test_a_server_that_is_not_there_is_named_without_its_password(
    finished: Workspace, closed_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    password = uuid.uuid4().hex
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://kim:{password}@127.0.0.1:{closed_port}")
    began = time.monotonic()
    with pytest.raises(TrackingError, match=f"MLFLOW_TRACKING_URI is http://127.0.0.1:{closed_port} ") as caught:
        check_reachable(finished)
    assert time.monotonic() - began < 30
    assert password not in f"{caught.getrepr(chain=True)}{caplog.text}"


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("ftp-like://somewhere", InputError),
        ("postgresql://kim:s3cret@127.0.0.1:1/mlflow", TrackingError),
        ("http://[::1", InputError),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(
    finished: Workspace, uri: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    began = time.monotonic()
    with pytest.raises(kind, match="MLFLOW_TRACKING_URI is .* cannot be used") as caught:
        check_reachable(finished)
    assert time.monotonic() - began < 30
    assert "s3cret" not in str(caught.value)


def test_the_embedded_default_needs_no_check(finished: Workspace) -> None:
    (finished.root / "mlflow.db").unlink()
    check_reachable(finished)
    assert not (finished.root / "mlflow.db").exists()
