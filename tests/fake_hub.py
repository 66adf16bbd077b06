"""A hub on 127.0.0.1: the routes of the Hugging Face hub that its client uses, over plain HTTP.

Large files are announced with their SHA-256 and served by a second server, as the hub's are by its
content network. What can go wrong is switched on by name.
"""

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".bin", ".safetensors", ".h5")
CHUNK = 1 << 16


@dataclass
class Commit:
    """The files of one commit."""

    files: dict[str, bytes]

    def __post_init__(self) -> None:
        self.digests: dict[str, str] = {}
        everything = repr(sorted((name, self.digest(name)) for name in self.files))
        self.sha = hashlib.sha1(everything.encode()).hexdigest()

    def digest(self, name: str) -> str:
        """SHA-256 of a large file, git's hash of another."""
        if name not in self.digests:
            content = self.files[name]
            kind = hashlib.sha256 if name.endswith(LARGE) else hashlib.sha1
            prefix = b"" if name.endswith(LARGE) else b"blob %d\0" % len(content)
            self.digests[name] = kind(prefix + content).hexdigest()
        return self.digests[name]


@dataclass
class Repository:
    """Commits by branch or tag; the settings are faults and guards."""

    refs: dict[str, Commit]
    token: str | None = None  # who does not send it sees no repository
    gated: bool = False
    status: int | None = None  # answered to everything
    file_status: int | None = None  # answered to every file
    announced: str | None = None  # hash announced for large files in place of the right one
    cut_after: int | None = None  # bytes of a large file after which the connection is closed
    shorter_by: int = 0  # bytes that a large file lacks, as if it were whole
    bytes_per_sec: float | None = None
    html: bool = False  # answer as the sign-in page of a café's network does
    stale: list[Commit] = field(default_factory=list)

    def commit(self, revision: str) -> Commit | None:
        if revision in self.refs:
            return self.refs[revision]
        everything = [*self.refs.values(), *self.stale]
        return next((commit for commit in everything if commit.sha == revision), None)

    def move(self, commit: Commit) -> None:
        """Let main be another commit; the old one can still be asked for."""
        self.stale.append(self.refs["main"])
        self.refs["main"] = commit


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    range: str | None
    authorization: str | None


class Hub:
    """Two servers, the hub and the one that large files come from; use as a context."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.store: dict[str, tuple[Repository, bytes]] = {}
        self._servers = [self._serve(_HubHandler), self._serve(_StoreHandler)]
        self.url, self.store_url = (
            f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers
        )

    def _serve(self, handler: type["_Handler"]) -> ThreadingHTTPServer:
        bound = type(handler.__name__, (handler,), {"hub": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave the network: the ports refuse connections from now on."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, name: str, folder_or_files: Path | dict[str, bytes], **faults: Any) -> Repository:
        """Publish a folder's files, or these, as a repository with a branch main."""
        files = folder_or_files
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in sorted(files.iterdir())}
        self.repositories[name] = Repository({"main": Commit(files)}, **faults)
        return self.repositories[name]

    def fetched(self, what: str = "/store/") -> list[Request]:
        """The GET requests for large files."""
        return [r for r in self.requests if r.method == "GET" and what in r.path]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        headers = self.headers
        self.hub.requests.append(
            Request(self.command, self.path, headers["Range"], headers["Authorization"])
        )
        try:
            self.answer(unquote(urlsplit(self.path).path))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def answer(self, path: str) -> None:
        raise NotImplementedError

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def fail(self, status: int, code: str | None = None) -> None:
        extra = {"X_Error_Code": code, "X_Error_Message": code} if code else {}
        if status == 429:
            extra["Retry_After"] = "17"
        self.send(status, json.dumps({"error": code}).encode(), **extra)


class _HubHandler(_Handler):
    def answer(self, path: str) -> None:
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/((?:refs/pr/)?[^/]+)/(.+)", path)
        match = about or file
        repository = self.hub.repositories.get(match[1]) if match else None
        if repository is None:
            return self.fail(401 if match else 404, "RepoNotFound")
        if repository.html:
            return self.send(200, b"<html>Please accept our terms</html>")
        if repository.status:
            return self.fail(repository.status)
        authorization = self.headers["Authorization"]
        allowed = repository.token and authorization == f"Bearer {repository.token}"
        if authorization and not allowed and authorization == "Bearer expired":
            return self.fail(401, "Invalid credentials in Authorization header")
        if repository.token and not allowed and not repository.gated:
            return self.fail(401, "RepoNotFound")
        revision = match[2] or "main"
        commit = repository.commit(revision)
        if commit is None:
            return self.fail(404, "RevisionNotFound")
        if about:
            siblings = [{"rfilename": name} for name in sorted(commit.files)]
            record = {"id": match[1], "modelId": match[1], "sha": commit.sha, "private": False}
            return self.send(200, json.dumps({**record, "siblings": siblings}).encode())
        if repository.gated and not allowed:
            return self.fail(403, "GatedRepo")
        if repository.file_status:
            return self.fail(repository.file_status)
        name = match[3]
        if name not in commit.files:
            return self.send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit.sha)
        content, digest = commit.files[name], commit.digest(name)
        if not name.endswith(LARGE):
            return self.send(200, content, ETag=f'"{digest}"', X_Repo_Commit=commit.sha)
        digest = repository.announced or digest
        self.hub.store[digest] = (repository, content)
        self.send(
            302,
            Location=f"{self.hub.store_url}/store/{digest}",
            ETag='"something-else"',
            X_Linked_Etag=f'"{digest}"',
            X_Linked_Size=str(len(content)),
            X_Repo_Commit=commit.sha,
        )


class _StoreHandler(_Handler):
    def answer(self, path: str) -> None:
        repository, content = self.hub.store[path.removeprefix("/store/")]
        content = content[: len(content) - repository.shorter_by]
        start = 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or ""):
            start = int(match[1])
            if start >= len(content):
                return self.fail(416)
        body = memoryview(content)[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        if start:
            end = len(content)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = 0
        for position in range(0, len(body), CHUNK):
            if repository.cut_after is not None and sent >= repository.cut_after:
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(body[position : position + CHUNK])
            sent += len(body[position : position + CHUNK])
            if repository.bytes_per_sec:
                time.sleep(CHUNK / repository.bytes_per_sec)
