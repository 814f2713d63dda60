"""A package index and a model hub on this machine, which speak the real protocols and count their requests."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from bedplate.hub import index as hub_index

COMMIT = "c0ffee" * 6 + "abcd"


class FakeServer:
    """An HTTP server in a thread; subclasses answer requests from a table."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                server.requests[f"{self.command} {path}"] += 1
                server.answer(self, path)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def answer(self, request: BaseHTTPRequestHandler, path: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def send(request: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    request.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


class FakeIndex(FakeServer):
    """The simple repository API (PEP 691 JSON). `slow` seconds pass between the chunks of a file; `hashed`: files have
    their sha256, and addresses relative to the page; `closed`: they are refused."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.slow = 0.0
        self.cut = self.hashed = self.closed = False

    @property
    def simple(self) -> str:
        return f"{self.url}/simple/"

    def downloads(self) -> int:
        return sum(n for key, n in self.requests.items() if key.startswith("GET /files/"))

    def answer(self, request: BaseHTTPRequestHandler, path: str) -> None:
        _, section, name, *_ = [*path.split("/"), ""]
        if section == "simple":
            # file names of one project start with its normalised name
            files = [
                {
                    "filename": f,
                    "url": f"../../files/{f}" if self.hashed else f"{self.url}/files/{f}",
                    "hashes": {"sha256": hashlib.sha256(content).hexdigest()} if self.hashed else {},
                }
                for f, content in self.files.items()
                if f.lower().replace("_", "-").startswith(name + "-")
            ]
            if not files:
                return send(request, 404)
            body = json.dumps({"meta": {"api-version": "1.0"}, "name": name, "files": files})
            return send(request, 200, body.encode(), Content_Type="application/vnd.pypi.simple.v1+json")
        if self.closed:
            return send(request, 403)
        content = self.files[name]
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        try:
            for start in range(0, len(content), 65536):
                if start and self.cut:
                    request.close_connection = True
                    return None
                request.wfile.write(content[start : start + 65536])
                if self.slow:
                    request.wfile.flush()
                    time.sleep(self.slow)
        except (BrokenPipeError, ConnectionResetError):
            request.close_connection = True
        return None


class FakeHub(FakeServer):
    """The routes of the Hub that snapshot_download uses: model info, tree, resolve."""

    def __init__(self) -> None:
        super().__init__()
        self.repos: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()

    def answer(self, request: BaseHTTPRequestHandler, path: str) -> None:
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if api else parts[:2])
        route = parts[4:] if api else parts[2:]
        if repo in self.gated:
            return send(request, 403, b"{}", X_Error_Code="GatedRepo")
        if repo not in self.repos:
            return send(request, 404, b"{}", X_Error_Code="RepoNotFound")
        files = self.repos[repo]
        if len(route) >= 2 and route[1] not in {"main", COMMIT}:
            return send(request, 404, b"{}", X_Error_Code="RevisionNotFound")
        if api and route[:1] == ["tree"]:
            body = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in files.items()
            ]
            return send(request, 200, json.dumps(body).encode(), Content_Type="application/json")
        if api:
            metadata = {
                "id": repo,
                "sha": COMMIT,
                "siblings": [{"rfilename": n} for n in files],
                "tags": [],
                "private": False,
            }
            return send(request, 200, json.dumps(metadata).encode(), Content_Type="application/json")
        name = "/".join(route[2:])
        if name not in files:
            return send(request, 404, b"", X_Error_Code="EntryNotFound")
        etag = hashlib.sha256(files[name]).hexdigest()
        return send(request, 200, files[name], ETag=f'"{etag}"', X_Repo_Commit=COMMIT)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeIndex]:
    """A fake package index that pip is configured with, and nothing else."""
    server = FakeIndex()
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", server.simple)
    read = hub_index._pip_files
    # pip takes a second to say that no file holds anything
    monkeypatch.setattr(
        hub_index, "_pip_files", lambda: {} if os.environ.get("PIP_CONFIG_FILE") == os.devnull else read()
    )
    yield server
    server.close()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub()
    yield server
    server.close()


def make_wheel(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def make_tar(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def archives() -> Any:
    """make_wheel and make_tar, for tests (which cannot import this file)."""

    class Archives:
        wheel = staticmethod(make_wheel)
        tar = staticmethod(make_tar)

    return Archives
