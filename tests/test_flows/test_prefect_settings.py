"""Prefect's settings from elsewhere: what cannot be used is refused in one line that names where it comes from."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEAD = "http://127.0.0.1:9/api"
_CHECK = """
import sys
from dass.errors import InputError
from flows.prefect_api import check_api
from flows.prefect_settings import prefect_settings
try:
    settings = prefect_settings()
    if settings.api.url:
        check_api(settings)
    print("usable")
except InputError as error:
    print(error)
"""


def checked(folder: Path, **environment: str) -> str:
    """What a command run in `folder` would say of Prefect's settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    ours = {"PREFECT_HOME": str(folder / "home"), "HOME": str(folder), "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-c", _CHECK],
        cwd=folder,
        env={**inherited, **ours},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    return line


def test_a_wrong_level_is_refused_where_it_was_set(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PREFECT_LOGGING_LEVEL=LOUD\n")
    line = checked(tmp_path)
    assert line.startswith(f"PREFECT_LOGGING_LEVEL in {tmp_path}/.env is 'LOUD': expected 'DEBUG', 'INFO'")


def test_a_home_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = checked(tmp_path, PREFECT_HOME=str(tmp_path / "file" / "home"))
    assert line.startswith(f"PREFECT_HOME is {tmp_path}/file/home (environment variable PREFECT_HOME), and it cannot")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "prefect.toml").write_text("api = = 1")
    assert checked(tmp_path).startswith(f"{tmp_path}/prefect.toml is not TOML (")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "text", "where"),
    [
        (".env", f"PREFECT_API_URL={DEAD}", "PREFECT_API_URL in {}/.env"),
        ("prefect.toml", f'[api]\nurl = "{DEAD}"', "api.url in {}/prefect.toml"),
        ("pyproject.toml", f'[tool.prefect.api]\nurl = "{DEAD}"', "tool.prefect.api.url in {}/pyproject.toml"),
        (
            "home/profiles.toml",
            f'active = "team"\n[profiles.team]\nPREFECT_API_URL = "{DEAD}"',
            'PREFECT_API_URL in profile "team" of {}/home/profiles.toml',
        ),
    ],
)
def test_a_dead_server_is_named_with_the_place_it_is_set_in(tmp_path: Path, file: str, text: str, where: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    line = checked(tmp_path)
    assert line.startswith(f"PREFECT_API_URL is {DEAD} ({where.format(tmp_path)}): no Prefect server answers there (")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "LOUD", "expected DEBUG"),
        ("PREFECT_PROFILE", "nope", "has no such profile"),
        ("PREFECT_API_REQUEST_TIMEOUT", "long", "expected a valid number"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, variable: str, value: str, told: str) -> None:
    line = checked(tmp_path, **{variable: value})
    assert line.startswith(f"environment variable {variable} is '{value}': ")
    assert told in line


class _Answers(BaseHTTPRequestHandler):
    """Answers as the path says: /401/api, /500/api, /html/api, /drip/api, /other/api."""

    def do_POST(self) -> None:
        how = self.path.split("/")[1]
        self.send_response(int(how) if how.isdigit() else 200)
        self.end_headers()
        if how == "drip":
            for _ in range(100):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.2)
        self.wfile.write({"html": b"<html>hello</html>", "other": b'{"detail": "hello"}'}.get(how, b"{}"))

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _other_services() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("401", "status 401"),
        ("500", "status 500"),
        ("html", "another service answers there"),
        ("other", "another service answers there"),
        ("drip", "no answer within 6 s"),
    ],
)
def test_what_is_no_prefect_server_is_said(tmp_path: Path, how: str, told: str) -> None:
    with _other_services() as address:
        line = checked(tmp_path, PREFECT_API_URL=f"{address}/{how}/api")
    assert "(environment variable PREFECT_API_URL): no Prefect server answers there (" in line
    assert told in line


def test_a_server_that_accepts_and_hangs_is_told_in_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        address = f"http://user:secret@127.0.0.1:{hanging.getsockname()[1]}/api"
        line = checked(tmp_path, PREFECT_API_URL=address)
    assert "no answer within 6 s" in line
    assert "secret" not in line
