"""A hub on this machine: what huggingface_hub asks for to list, download, create and commit, answered from memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import huggingface_hub
import pytest
from huggingface_hub import constants

Files = dict[str, bytes]


@dataclass
class Repo:
    """Revisions by name and commit; ``main`` is the newest."""

    private: bool = False
    revisions: dict[str, Files] = field(default_factory=dict)

    def commit(self, files: Files, *names: str) -> str:
        sha = hashlib.sha1(repr((len(self.revisions), sorted(files))).encode()).hexdigest()
        self.revisions |= dict.fromkeys((sha, "main", *names), files)
        return sha

    def sha(self, revision: str) -> str:
        return next(name for name, files in self.revisions.items() if len(name) == 40 and files is self.revisions[revision])


class Hub:
    """The repositories, and what was asked for: (method, path)."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.asked: list[tuple[str, str]] = []
        self.fails = 0  # status of every answer to a POST

    def add(self, name: str, files: Files, *revisions: str) -> str:
        return self.repos.setdefault(name, Repo()).commit(files, *revisions)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        self.asked.append((method, path))
        parts = [unquote(part) for part in path.partition("?")[0].strip("/").split("/")]
        if method == "POST" and self.fails:
            return self.fails, {"error": "it fails"}, {}
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.repos:
                return 409, {"error": "there already", "url": name}, {}
            self.add(name, {".gitattributes": b""})
            self.repos[name].private = asked.get("visibility") == "private" or bool(asked.get("private"))
            return 200, {"url": f"{constants.ENDPOINT}/{name}"}, {}
        if parts == ["api", "validate-yaml"]:
            return 200, {"errors": [], "warnings": []}, {}
        api = parts[:2] == ["api", "models"]
        name, rest = ("/".join(parts[2:4]), parts[4:]) if api else ("/".join(parts[:2]), parts[2:])
        if name not in self.repos:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        repo, revision = self.repos[name], rest[1] if len(rest) > 1 else "main"
        if revision not in repo.revisions:
            return 404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"}
        files, sha = repo.revisions[revision], repo.sha(revision)
        if rest[:1] == ["preupload"]:
            asked = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}, {}
        if rest[:1] == ["commit"]:
            lines = [json.loads(line) for line in body.splitlines()]
            new = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
            sha = repo.commit({**files, **new})
            return 200, {"commitUrl": f"{constants.ENDPOINT}/{name}/commit/{sha}", "commitOid": sha}, {}
        if rest[:1] == ["tree"]:
            rows = [{"type": "file", "path": k, "size": len(v), "oid": hashlib.sha1(v).hexdigest()} for k, v in files.items()]
            return 200, rows, {}
        if rest[:1] == ["resolve"]:
            content = files["/".join(rest[2:])]
            return 200, content, {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        return 200, {"id": name, "sha": sha, "private": repo.private, "siblings": [{"rfilename": k} for k in files]}, {}


@contextmanager
def local_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with nothing in it, which huggingface_hub takes for the real one, with a cache of its own."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            code, content, headers = hub.answer(self.command, self.path, self.rfile.read(size))
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(code)
            for key, value in {"Content-Length": str(len(raw)), "Content-Type": "application/json", **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(raw)

        do_GET = do_HEAD = do_POST = reply

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "of-nobody")
    huggingface_hub.close_session()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        huggingface_hub.close_session()
