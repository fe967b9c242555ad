"""Wheels made on the spot, and a package index on this machine's loopback that serves them to the real pip."""

import functools
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def make_wheel(folder: Path, name: str, members: dict[str, bytes], version: str = "1.0") -> Path:
    """Write the smallest wheel that pip downloads."""
    stem = f"{re.sub(r'[-_.]+', '_', name)}-{version}"
    wheel = folder / f"{stem}-py3-none-any.whl"
    metadata = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in {**members, **metadata, f"{stem}.dist-info/RECORD": b""}.items():
            archive.writestr(path, content)
    return wheel


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def package_index(folder: Path) -> Iterator[dict[str, str]]:
    """Serve `folder`, which holds one folder of wheels a project (`add_project`), as pip's only index.

    Yields:
        The environment that makes it so.
    """
    handler = functools.partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield {
                "PIP_INDEX_URL": f"http://127.0.0.1:{server.server_address[1]}/",
                "PIP_CONFIG_FILE": "/dev/null",
                "PIP_EXTRA_INDEX_URL": "",
                "PIP_FIND_LINKS": "",
                "PIP_NO_INDEX": "0",
                "NO_PROXY": "127.0.0.1",
            }
        finally:
            server.shutdown()


def add_project(index: Path, name: str, version: str, members: dict[str, bytes]) -> None:
    """One more project with one wheel, where an index has it."""
    project = index / re.sub(r"[-_.]+", "-", name).lower()
    project.mkdir(parents=True)
    make_wheel(project, name, members, version)
