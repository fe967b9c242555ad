"""Who may speak to a Prefect server of our own: those who know its login, by this machine's own names."""

import base64
import http.client
import json
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from prefect.settings import Settings
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from dass.errors import InputError
from flows import prefect_api
from flows.prefect_api import ServerError, own_server
from flows.prefect_login import Login
from flows.served import obey_schedule, schedule_here
from flows.timetable import Timetable
from tasks.workspace.folder import Workspace
from tasks.workspace.redaction import redacted
from tests.test_flows.conftest import SERVER_AT, Commands

FOREIGN = "http://evil.example"


@pytest.fixture
def api(commands: Commands) -> str:
    return commands.environment["PREFECT_API_URL"]


@pytest.fixture
def login(commands: Commands) -> str:
    return commands.environment["PREFECT_API_AUTH_STRING"]


def basic(login: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def answer(url: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str]]:
    """Status and headers of a request. Host may be given."""
    parts = urlsplit(url)
    line = http.client.HTTPConnection(parts.netloc, timeout=30)
    try:
        line.request(method, parts.path, headers=headers)
        got = line.getresponse()
        got.read()
        return got.status, {name.lower(): value for name, value in got.getheaders()}
    finally:
        line.close()


@pytest.mark.parametrize("path", ["/admin/version", "/admin/settings", "/flows/count", "/deployments/filter"])
def test_who_does_not_log_in_gets_nothing(api: str, login: str, path: str) -> None:
    method = "GET" if "admin" in path else "POST"
    assert answer(f"{api}{path}", method)[0] == 401
    assert answer(f"{api}{path}", method, **basic("dass:guessed"))[0] == 401
    assert answer(f"{api}{path}", method, **basic(login))[0] in (200, 422)  # 422: that path wants a body


def test_who_only_asks_whether_it_lives_needs_no_login(api: str) -> None:
    assert answer(f"{api}/health")[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:4200", "127.0.0.1.evil.example", "localhost.evil", ""])
@pytest.mark.parametrize("path", ["/health", "/admin/version", "/events/in"])
def test_another_sites_name_is_refused(api: str, login: str, host: str, path: str) -> None:
    assert answer(f"{api}{path}", Host=host, **basic(login))[0] == 400


def test_both_names_of_this_machine_are_taken_at_any_port(api: str, login: str) -> None:
    for host in ("127.0.0.1", "localhost", "localhost:9000"):  # a forwarded port has another number
        assert answer(f"{api}/admin/version", Host=host, **basic(login))[0] == 200


def test_a_websocket_for_another_sites_name_is_refused(api: str) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Protocol": "prefect",
    }
    assert answer(f"{api}/events/in", Host="evil.example", **upgrade)[0] == 400
    assert answer(f"{api}/events/in", Host="127.0.0.1", **upgrade)[0] == 101


@pytest.mark.parametrize("path", ["/events/in", "/events/out", "/logs/out"])
def test_a_websocket_wants_the_login_first(api: str, login: str, path: str) -> None:
    url = f"{api.replace('http', 'ws', 1)}{path}"
    for token in ("dass:guessed", "", None):
        with connect(url, subprotocols=[Subprotocol("prefect")]) as socket:
            socket.send(json.dumps({"type": "auth", "token": token}))
            with pytest.raises(ConnectionClosed):
                socket.recv(30)
    with connect(url, subprotocols=[Subprotocol("prefect")]) as socket:
        socket.send(json.dumps({"type": "auth", "token": login}))
        assert json.loads(socket.recv(30)) == {"type": "auth_success"}


@pytest.mark.parametrize("origin", [FOREIGN, "null", "http://127.0.0.1:1", "https://localhost"])
def test_a_page_of_another_site_gets_no_permission(api: str, login: str, origin: str) -> None:
    ask = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    status, headers = answer(f"{api}/flows/filter", "OPTIONS", **ask)
    assert status == 400
    assert "access-control-allow-origin" not in headers
    _, headers = answer(f"{api}/admin/version", Origin=origin, **basic(login))
    assert "access-control-allow-origin" not in headers


def test_the_login_stands_in_no_processes_arguments_and_in_no_line_that_is_shown(login: str) -> None:
    password = login.partition(":")[2]
    server = [child for child in psutil.Process().children() if "flows.prefect_app:create_app" in child.cmdline()]
    assert server
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        assert password not in " ".join(process.cmdline())
    for text in (login, password, f"Authorization: {basic(login)['Authorization']}", f"user is {login!r}"):
        shown = redacted(text)
        assert password not in shown
        assert base64.b64encode(login.encode()).decode() not in shown
    assert password not in repr(Login(login, None))


def test_a_login_is_made_anew_at_each_start_unless_the_settings_give_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SERVER_AT:
        monkeypatch.delenv(name, raising=False)
    made = [Login.of(Settings()) for _ in range(2)]
    assert made[0].secret != made[1].secret
    assert all(re.fullmatch(r"dass:[0-9a-f]{32}", login.secret) and login.chosen is None for login in made)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:for-clients")
    kept = Login.of(Settings())
    assert (kept.secret, kept.chosen) == ("me:for-clients", "environment variable PREFECT_API_AUTH_STRING")
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "me:for-servers")
    kept = Login.of(Settings())
    assert (kept.secret, kept.chosen) == ("me:for-servers", "environment variable PREFECT_SERVER_API_AUTH_STRING")


def test_a_server_that_asks_for_no_login_is_not_used(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another program's on the same port would, or Prefect's once it calls the setting something else."""
    (tmp_path / "open.py").write_text(
        "async def app(scope, receive, send):\n"
        "    if scope['type'] == 'http':\n"
        "        await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "        await send({'type': 'http.response.body', 'body': b'{}'})\n"
        "def create_app():\n"
        "    return app\n"
    )
    monkeypatch.setattr(prefect_api, "_APP", "open:create_app")
    monkeypatch.setattr(prefect_api, "_HERE", tmp_path)
    monkeypatch.setattr(prefect_api, "_QUIET", ("--log-level", "error", "--lifespan", "off"))
    before = {name: os.environ[name] for name in SERVER_AT}
    with pytest.raises(ServerError, match="asks for no login"), own_server():
        pass
    assert {name: os.environ[name] for name in SERVER_AT} == before


def test_a_schedule_takes_its_own_workspace_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BY", "WORKSPACE", "CHANGES", "JITTER", "REVISION"):
        monkeypatch.setenv(f"DASS_SERVED_{name}", "")  # and is put back
    obey_schedule(str(tmp_path / "any"))
    schedule_here(Workspace(tmp_path), [], Timetable("0 2 * * *"), None)
    obey_schedule(str(tmp_path))
    for other in (str(tmp_path / "other"), f"{tmp_path}/../{tmp_path.name}", ".", "", "/"):
        with pytest.raises(InputError, match=re.escape(f'this schedule works in "{tmp_path}" only')):
            obey_schedule(other)
