"""A hub on this machine's loopback that serves one data set to the real client libraries."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(repo: str, files: Mapping[str, bytes], patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve a data set's files, all of one commit, and let the libraries of this process ask there.

    Args:
        repo: org/name.
        files: by path.
        patch: undoes what is set here.
    """
    import datasets.config
    from huggingface_hub import constants

    entries = [
        {"type": "file", "path": path, "oid": sha1(content).hexdigest(), "size": len(content)}
        for path, content in files.items()
    ]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith(f"/api/datasets/{repo}/tree/"):
                self.answer(json.dumps(entries).encode())
            elif path == f"/api/datasets/{repo}" or path.startswith(f"/api/datasets/{repo}/revision/"):
                self.answer(json.dumps({"id": repo, "sha": COMMIT, "siblings": []}).encode())
            elif path.startswith(f"/datasets/{repo}/resolve/") and path.split("/", 6)[6] in files:
                self.answer(files[path.split("/", 6)[6]])
            else:
                self.answer(b"", 404, {"X-Error-Code": "EntryNotFound"})

        do_HEAD = do_GET

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(json.dumps([entry for entry in entries if entry["path"] in asked["paths"]]).encode())

        def answer(self, body: bytes, status: int = 200, more: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{sha1(body).hexdigest()}"', **(more or {})}
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "ENDPOINT", address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        patch.setattr(datasets.config, "HF_ENDPOINT", address)
        patch.setattr(datasets.config, "HUB_DATASETS_URL", address + "/datasets/{repo_id}/resolve/{revision}/{path}")
        try:
            yield
        finally:
            server.shutdown()
