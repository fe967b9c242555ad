"""A real Chromium without a window, spoken to over its DevTools protocol: what it draws, logs and asks the network for.

It is no dependency of the product: where none is installed, the tests that want one are skipped.
"""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

from websockets.sync.client import connect
from websockets.sync.connection import Connection

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell"))), None
)
_QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--mute-audio"),
)


class Page:
    """One tab.

    Attributes:
        faults: console errors and warnings, violations of the page's policy, and exceptions, as they came.
        requests: every address that was asked for.
    """

    def __init__(self, socket: Connection) -> None:
        self._socket, self._n = socket, 0
        self.faults: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the browser; what it tells meanwhile is noted."""
        self._n += 1
        self._socket.send(json.dumps({"id": self._n, "method": method, "params": params}))
        while True:
            told = self._told()
            if told.get("id") == self._n:
                assert "error" not in told, told["error"]
                answer: dict[str, Any] = told["result"]
                return answer

    def shaped(self, width: int, height: int = 900, *, dark: bool = False, media: str = "screen") -> None:
        """As a window of that size, and as a reader who likes it dark, or on paper."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def open(self, file: Path) -> None:
        """Open a file and wait until it is loaded."""
        self.call("Page.navigate", url=file.resolve().as_uri())
        while self._told().get("method") != "Page.loadEventFired":
            pass

    def value(self, script: str) -> Any:
        """What an expression is; of a promise, what it becomes."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self) -> bytes:
        """The whole page as PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def _told(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self._socket.recv(timeout=60))
        params = told.get("params", {})
        match told.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.faults.append(str(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.faults.append(" ".join(str(each.get("value", each.get("description"))) for each in params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.faults.append(params["entry"]["text"])
        return told


@contextmanager
def browser() -> Iterator[Page]:
    """Chromium with one empty tab, until the context ends."""
    assert CHROMIUM is not None
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [CHROMIUM, *_QUIET, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            host = f"127.0.0.1:{_port(Path(profile) / 'DevToolsActivePort', process)}"
            with connect(f"ws://{host}/devtools/page/{_tab(host)}", max_size=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    """Where it listens; it writes that down once it does."""
    deadline = time.monotonic() + 60
    while not (file.is_file() and file.read_text().count("\n")):
        assert process.poll() is None, f"{CHROMIUM} ended with status {process.returncode}"
        assert time.monotonic() < deadline, f"{CHROMIUM} did not start"
        time.sleep(0.1)
    return int(file.read_text().split()[0])


def _tab(host: str) -> str:
    with urlopen(f"http://{host}/json/list", timeout=30) as answer:
        tabs = json.load(answer)
    return next(str(tab["id"]) for tab in tabs if tab["type"] == "page")
