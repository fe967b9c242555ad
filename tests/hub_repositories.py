"""A double of the hub on loopback, as far as publishing needs it: repositories that the real client writes and reads.

It keeps commits, branches, tags and large files, asks for a login, and can be told to fail.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import pytest

TOKEN = "hf_aWriteTokenOfTheTests"
_LARGE = (".safetensors",)
_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"

Tree = dict[str, bytes]


@dataclass
class HubRepository:
    """One repository.

    Attributes:
        private: whether it is.
        commits: commit -> its files.
        branches, tags: name -> commit.
    """

    private: bool
    commits: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, tree: Tree) -> str:
        said = json.dumps([len(self.commits), {name: hashlib.sha1(each).hexdigest() for name, each in tree.items()}])
        commit = hashlib.sha1(said.encode()).hexdigest()
        self.commits[commit], self.branches[branch] = tree, commit
        return commit

    def tree(self, revision: str) -> Tree | None:
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)


@dataclass
class Hub:
    """What the double holds, and what it was asked.

    Attributes:
        repositories: org/name -> repository.
        large: sha256 -> the bytes of a large file that was uploaded.
        asked: method and path of every request, in order.
        uploads: sha256 of each upload that arrived whole.
        failing: part of a "METHOD path" -> statuses that the next such requests get instead of an answer.
    """

    repositories: dict[str, HubRepository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    failing: dict[str, list[int]] = field(default_factory=dict)

    @property
    def written(self) -> list[str]:
        """The requests that changed something."""
        return [each for each in self.asked if re.search("repos/create|/commit/|/tag/|PUT ", each)]


@contextmanager
def hub_repositories(patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve an empty hub, which this process is logged in to."""
    from huggingface_hub import constants

    made = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(made)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its protocol is not doubled: large files go by LFS
        patch.setattr(constants, "ENDPOINT", address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        try:
            yield made
        finally:
            server.shutdown()


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
    if path.endswith(_LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.route("GET")

        def do_HEAD(self) -> None:
            self.route("HEAD")

        def do_POST(self) -> None:
            self.route("POST")

        def do_PUT(self) -> None:
            self.route("PUT")

        def route(self, method: str) -> None:
            path = unquote(self.path.partition("?")[0])
            body = self.body()
            hub.asked.append(f"{method} {path}")
            for part, statuses in hub.failing.items():
                if part in hub.asked[-1] and statuses:
                    self.answer({"error": "told to fail"}, statuses.pop(0))
                    return
            if path.startswith("/upload/"):
                sha256 = hashlib.sha256(body).hexdigest()
                assert path == f"/upload/{sha256}"
                hub.large[sha256] = body
                hub.uploads.append(sha256)
                self.answer({})
            elif path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer({"error": "Invalid username or password."}, 401)
            elif path == "/api/repos/create":
                self.create(json.loads(body))
            elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
                self.batch(json.loads(body))
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.resolve(*match.groups())
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path):
                self.repository(method, match[1], match[2] or "", body)
            else:
                self.answer({"error": "no such place"}, 404)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def create(self, asked: dict[str, Any]) -> None:
            name = f"{asked['organization']}/{asked['name']}"
            if name in hub.repositories:
                self.answer({"error": "You already created this model repo"}, 409)
                return
            made = hub.repositories[name] = HubRepository(private=asked.get("visibility") == "private")
            made.commit("main", {".gitattributes": _ATTRIBUTES})
            self.answer({"url": f"http://{self.headers['Host']}/{name}", "id": name, "name": name})

        def batch(self, asked: dict[str, Any]) -> None:
            objects = []
            for each in asked["objects"]:
                href = f"http://{self.headers['Host']}/upload/{each['oid']}"
                actions = {} if each["oid"] in hub.large else {"actions": {"upload": {"href": href}}}
                objects.append({**each, **actions})
            self.answer({"transfer": "basic", "objects": objects})

        def resolve(self, name: str, revision: str, path: str) -> None:
            tree = hub.repositories[name].tree(revision) if name in hub.repositories else None
            if tree is None or path not in tree:
                self.answer({}, 404, {"X-Error-Code": "EntryNotFound"})
                return
            repo = hub.repositories[name]
            commit = repo.branches.get(revision) or repo.tags.get(revision) or revision
            entry = _entry(path, tree[path])
            etag = entry.get("lfs", entry)["oid"]
            self.answer(tree[path], 200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})

        def repository(self, method: str, name: str, rest: str, body: bytes) -> None:
            repo = hub.repositories.get(name)
            if repo is None:
                self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
                return
            what, _, where = rest.removeprefix("/").partition("/")
            if what in ("", "revision"):
                revision = where or "main"
                commit = repo.branches.get(revision) or repo.tags.get(revision) or revision
                names = [{"rfilename": each} for each in repo.tree(commit) or {}]
                self.answer({"id": name, "sha": commit, "private": repo.private, "siblings": names, "tags": []})
            elif what == "refs":
                branches = [
                    {"name": each, "ref": f"refs/heads/{each}", "targetCommit": commit}
                    for each, commit in repo.branches.items()
                ]
                tags = [
                    {"name": each, "ref": f"refs/tags/{each}", "targetCommit": commit}
                    for each, commit in repo.tags.items()
                ]
                self.answer({"branches": branches, "tags": tags, "converts": []})
            elif what == "tree":
                self.answer([_entry(path, content) for path, content in (repo.tree(where) or {}).items()])
            elif what == "preupload":
                files = json.loads(body)["files"]
                modes = [
                    {
                        "path": each["path"],
                        "uploadMode": "lfs" if each["path"].endswith(_LARGE) else "regular",
                        "shouldIgnore": False,
                    }
                    for each in files
                ]
                self.answer({"files": modes})
            elif what == "commit":
                self.commit(name, repo, where, body)
            elif what == "tag":
                tag = json.loads(body)["tag"]
                if tag in repo.tags:
                    self.answer({"error": "Tag already exists"}, 409)
                    return
                repo.tags[tag] = repo.branches.get(where) or where
                self.answer({})
            else:
                self.answer({"error": "no such place"}, 404)

        def commit(self, name: str, repo: HubRepository, branch: str, body: bytes) -> None:
            tree = dict(repo.commits[repo.branches[branch]])
            for line in body.decode().splitlines():
                said = json.loads(line)
                value = said["value"]
                if said["key"] == "header":
                    if value.get("parentCommit") not in (None, repo.branches[branch]):
                        self.answer({"error": "A commit has happened since."}, 412)
                        return
                elif said["key"] == "file":
                    tree[value["path"]] = base64.b64decode(value["content"])
                elif said["key"] == "lfsFile":
                    tree[value["path"]] = hub.large[value["oid"]]  # KeyError: it was never uploaded
                elif said["key"] == "deletedFile":
                    del tree[value["path"]]
            commit = repo.commit(branch, tree)
            url = f"http://{self.headers['Host']}/{name}/commit/{commit}"
            self.answer({"success": True, "commitOid": commit, "commitUrl": url})

        def answer(self, what: Any, status: int = 200, more: dict[str, str] | None = None) -> None:
            content = what if isinstance(what, bytes) else json.dumps(what).encode()
            self.send_response(status)
            headers = {"Content-Type": "application/json", **(more or {}), "Content-Length": str(len(content))}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return Handler
