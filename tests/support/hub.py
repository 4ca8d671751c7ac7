"""A small stand-in for the Hugging Face hub on the loopback: repositories in memory, and the calls of its client."""

from __future__ import annotations

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
from urllib.parse import unquote, urlsplit

TOKEN = "hf_a_token_of_tests"


@dataclass
class Repository:
    """The commits of a model repository: revision -> path -> content."""

    private: bool | None
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.branches.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None


@dataclass
class Hub:
    """What the stand-in has, and what it was asked."""

    address: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def newest(self, name: str) -> dict[str, bytes]:
        """Return the files on a repository's main branch."""
        repository = self.repositories[name]
        return repository.commits[repository.branches["main"]]

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        """Add a commit to a repository's main branch and return its hash."""
        repository = self.repositories[name]
        old = repository.files("main")
        content = {**(old[1] if old else {}), **files}
        sha = hashlib.sha1(repr(sorted(content.items())).encode()).hexdigest()
        repository.commits[sha] = content
        repository.branches["main"] = sha
        return sha


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            return self._info(found[1], found[2] or "main")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            return self._tree(found[1], found[2])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*found.groups())
        return self._answer(404, {"error": f"no {path}"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.hub.asked.append(f"POST {self.path}")
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in files]
            return self._answer(200, {"files": modes})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            lines = [json.loads(line)["value"] for line in body.splitlines() if json.loads(line)["key"] == "file"]
            sha = self.hub.commit(found[1], {line["path"]: base64.b64decode(line["content"]) for line in lines})
            return self._answer(200, {"commitUrl": f"{self.hub.address}/{found[1]}/commit/{sha}", "commitOid": sha})
        return self._answer(404, {"error": f"no {path}"})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if name.startswith("stranger/"):
            return self._answer(403, {"error": "You don't have the rights to create a model under that namespace"})
        if name in self.hub.repositories:
            return self._answer(
                409, {"error": "You already created this model repo", "url": f"{self.hub.address}/{name}"}
            )
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private)
        self.hub.commit(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self._answer(200, {"url": f"{self.hub.address}/{name}", "name": name})

    def _found(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.hub.repositories.get(name)
        found = repository.files(revision) if repository else None
        if found is None:
            code = "RevisionNotFound" if repository else "RepoNotFound"
            self._answer(404, {"error": code}, {"X-Error-Code": code})
        return found

    def _info(self, name: str, revision: str) -> None:
        if found := self._found(name, revision):
            siblings = [{"rfilename": path} for path in found[1]]
            self._answer(200, {"id": name, "modelId": name, "sha": found[0], "siblings": siblings, "private": False})

    def _tree(self, name: str, revision: str) -> None:
        if found := self._found(name, revision):
            rows = [{"type": "file", "path": p, "size": len(c), "oid": _etag(c)} for p, c in found[1].items()]
            self._answer(200, rows)

    def _file(self, name: str, revision: str, path: str) -> None:
        found = self._found(name, revision)
        if found is None:
            return
        sha, files = found
        if path not in files:
            self._answer(404, {"error": "EntryNotFound"}, {"X-Error-Code": "EntryNotFound"})
        else:
            headers = {"X-Repo-Commit": sha, "ETag": f'"{_etag(files[path])}"', "Accept-Ranges": "bytes"}
            self._send(200, files[path], "application/octet-stream", headers)

    def _answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", headers or {})

    def _send(self, status: int, content: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def served() -> Iterator[Hub]:
    """Serve a hub on a free port of the loopback while the body runs."""
    handler = type("Handler", (_Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")  # pyright: ignore[reportAttributeAccessIssue]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield handler.hub  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            server.shutdown()
            thread.join()
