"""What of a stack is refused before anything is started."""

import socket
import stat
from pathlib import Path

import pytest

from dass.errors import InputError
from flows.stack import whole
from flows.stack.accounts import make_account
from flows.stack.place import Place, environment_file, read_environment, write_private
from tasks.workspace.folder import Workspace
from tests.servers import installed

NOTHING: dict[str, int | None] = {}


def test_without_postgres_one_line_says_how_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    with pytest.raises(InputError, match="Postgres is not installed: .* Run: apt install postgresql"):
        whole.up(Workspace(tmp_path), None, NOTHING, print)
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken_is_named_before_anything_starts(tmp_path: Path) -> None:
    installed()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"Port {taken} of 127.0.0.1 .* Choose another: --prefect-port PORT"):
            whole.up(Workspace(tmp_path), None, {"prefect": taken}, print)
    assert [each.state for each in whole.status(Workspace(tmp_path)).services] == ["stopped"] * 4


def test_two_services_do_not_share_a_port(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Two services have one port"):
        whole.up(Workspace(tmp_path), None, {"prefect": 5000}, print)


def test_one_stack_is_started_or_stopped_at_a_time(tmp_path: Path) -> None:
    with Place.of(Workspace(tmp_path)).held(), pytest.raises(InputError, match="Another dass stack is starting"):
        whole.down(Workspace(tmp_path), False, print)


def test_logins_and_passwords_are_files_for_this_user_only(tmp_path: Path) -> None:
    place = Place(tmp_path / "stack")
    place.make()
    values = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000", "MLFLOW_TRACKING_PASSWORD": place.secret("it")}
    write_private(place.account("kim"), environment_file(values))
    assert read_environment(place.account("kim")) == values
    assert place.secret("it") == values["MLFLOW_TRACKING_PASSWORD"] != place.secret("other")
    for path in (
        place.accounts,
        place.root / "private",
        place.logs,
        place.account("kim"),
        place.root / "private" / "it",
    ):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    place.account("kim").chmod(0o644)
    with pytest.raises(InputError, match="has mode 0644: an account's login is for its owner only"):
        read_environment(place.account("kim"))


@pytest.mark.parametrize(
    ("name", "role", "told"), [("kim", "boss", "--role is 'boss'"), ("../kim", "reader", "name is")]
)
def test_an_account_that_cannot_be_is_refused(tmp_path: Path, name: str, role: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        make_account(Place(tmp_path), "127.0.0.1", whole.PORTS, name, role)
