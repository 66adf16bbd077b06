"""A hub on 127.0.0.1: the routes of the Hugging Face hub that its client uses, over plain HTTP.

Large files are announced with their SHA-256 and served by a second server, as the hub's are by its
content network; they are sent there too (Git LFS, in one part or several) before the commit that
names them. What can go wrong is switched on by name.
"""

import base64
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

import yaml

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

    def described(self, name: str) -> dict[str, Any]:
        """A file as the hub lists it when its hashes are asked for."""
        size = len(self.files[name])
        listed = {"rfilename": name, "size": size, "blobId": self.digest(name)}
        if name.endswith(LARGE):
            listed["blobId"] = "0" * 40  # of the pointer, which git holds in its place
            listed["lfs"] = {"sha256": self.digest(name), "size": size, "pointerSize": 134}
        return listed


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
    longer_by: int = 0  # bytes that follow a large file
    drips: bool = False  # a header of every file comes byte by byte
    weights_drip: bool = False  # a header of every large file does
    answers_drip: str = ""  # those to what is sent to paths that hold this do
    bytes_per_sec: float | None = None
    html: bool = False  # answer as the sign-in page of a café's network does
    private: bool = False
    part_size: int | None = None  # of an upload; None: in one part
    cut_uploads: int = 0  # so many uploads break off
    raced: bool = False  # somebody else commits while a file is sent
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
    """Two servers, the hub and the one that large files come from; use as a context.

    The token "TOKEN" is somebody's, who may write to what is called somebody/…; "reader" may not
    write, and "expired" is not accepted.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.store: dict[str, tuple[Repository, bytes]] = {}
        self.uploaded: dict[str, bytes] = {}  # by SHA-256, in a commit or not yet
        self.parts: dict[tuple[str, int], bytes] = {}
        self.faults: dict[str, Any] = {}  # of repositories that are made by a request
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
            paths = sorted(path for path in files.rglob("*") if path.is_file())
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        self.repositories[name] = Repository({"main": Commit(files)}, **faults)
        return self.repositories[name]

    def sent(self, method: str, what: str) -> list[Request]:
        """The requests by another method than GET whose path holds this."""
        return [r for r in self.requests if r.method == method and what in r.path]

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

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
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
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, document: Any) -> None:
        self.send(200, json.dumps(document).encode(), Content_Type="application/json")

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def fail(self, status: int, code: str | None = None) -> None:
        extra = {"X_Error_Code": code, "X_Error_Message": code} if code else {}
        if status == 429:
            extra["Retry_After"] = "17"
        self.send(status, json.dumps({"error": code}).encode(), **extra)


class _HubHandler(_Handler):
    def answer(self, path: str) -> None:
        if self.command == "POST":
            return self.written(path)
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/((?:refs/pr/)?[^/]+)/(.+)", path)
        match = about or file
        repository = self.hub.repositories.get(match[1]) if match else None
        if repository is None:
            known = self.headers["Authorization"] in ("Bearer TOKEN", "Bearer reader")
            return self.fail(401 if match and not known else 404, "RepoNotFound")
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
            if "blobs=" in urlsplit(self.path).query:
                siblings = [commit.described(name) for name in sorted(commit.files)]
            private = repository.private
            record = {"id": match[1], "modelId": match[1], "sha": commit.sha, "private": private}
            return self.send(200, json.dumps({**record, "siblings": siblings}).encode())
        if repository.gated and not allowed:
            return self.fail(403, "GatedRepo")
        if repository.file_status:
            return self.fail(repository.file_status)
        while repository.drips:
            self.wfile.write(b"y")
            time.sleep(0.1)
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

    def written(self, path: str) -> None:
        """What is asked for by POST, in the order in which the client asks."""
        body = self.body()
        if path == "/api/validate-yaml":
            return self.validate(json.loads(body)["content"])
        if self.headers["Authorization"] != "Bearer TOKEN":
            if self.headers["Authorization"] == "Bearer reader":
                return self.fail(403, "This token has no write permission")
            return self.fail(401, "Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        to = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+?)(?:\.git/info/lfs)?/(\w+)/(\w+)", path)
        repository = self.hub.repositories.get(to[1]) if to else None
        if to is None or repository is None:
            return self.fail(404, "RepoNotFound")
        while repository.answers_drip and repository.answers_drip in path:
            self.wfile.write(b"y")
            time.sleep(0.1)
        if to[1].split("/")[0] != "somebody":
            return self.fail(403, "You have no right to write here")
        if to[2] == "preupload":
            return self.preupload(repository, json.loads(body)["files"])
        if to[2] == "objects":
            return self.batch(to[1], repository, json.loads(body)["objects"])
        if to[2] == "verify":
            held = self.hub.uploaded.get(to[3])
            return self.send(404 if held is None else 200)
        if to[2] == "commit" and to[3] in repository.refs:
            return self.commit(to[1], repository, [json.loads(x) for x in body.splitlines()])
        return self.fail(404, "EntryNotFound")

    def validate(self, card: str) -> None:
        header = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
        if header is None:
            return self.send_json({"warnings": [{"message": "empty or missing yaml metadata"}]})
        try:
            yaml.safe_load(header[1])
        except yaml.YAMLError as error:
            message = {"errors": [{"message": str(error)}], "warnings": []}
            return self.send(400, json.dumps(message).encode())
        return self.send_json({"errors": [], "warnings": []})

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != "somebody":
            return self.fail(403, "You don't have the rights to create a model in this namespace")
        if name in self.hub.repositories:
            return self.fail(409, "You already created this model repo")
        # The client says it in one way or, since some version, the other.
        private = wanted.get("private") or wanted.get("visibility") == "private"
        token = "TOKEN" if private else None
        files = {".gitattributes": b""}
        self.hub.add(name, files, private=private, token=token, **self.hub.faults)
        return self.send_json({"url": f"{self.hub.url}/{name}"})

    def preupload(self, repository: Repository, files: list[dict[str, Any]]) -> None:
        if repository.raced:
            repository.move(Commit({**repository.refs["main"].files, "notes.md": b"mine"}))
        head = repository.refs["main"]
        answers = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": head.digest(file["path"]) if file["path"] in head.files else None,
            }
            for file in files
        ]
        return self.send_json({"files": answers})

    def batch(self, name: str, repository: Repository, objects: list[dict[str, Any]]) -> None:
        answers = []
        for wanted in objects:
            oid, size, part_size = wanted["oid"], wanted["size"], repository.part_size
            self.hub.store.setdefault(oid, (repository, b""))
            upload = {"href": f"{self.hub.store_url}/store/{oid}"}
            verify = {"href": f"{self.hub.url}/{name}.git/info/lfs/verify/{oid}"}
            if part_size:
                count = -(-size // part_size)
                urls = {str(i): f"{upload['href']}/{i}" for i in range(1, count + 1)}
                upload["header"] = {"chunk_size": str(part_size), **urls}
            actions = {"upload": upload, "verify": verify}
            answer = {"oid": oid, "size": size}
            answers.append(answer if oid in self.hub.uploaded else {**answer, "actions": actions})
        return self.send_json({"transfer": "basic", "objects": answers})

    def commit(self, name: str, repository: Repository, lines: list[dict[str, Any]]) -> None:
        head = repository.refs["main"]
        files = dict(head.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", head.sha) != head.sha:
                return self.fail(412, "A commit has happened since. Please refresh and try again.")
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "deletedFile":
                del files[value["path"]]
            if line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
        made = Commit(files)
        repository.move(made)
        url = f"{self.hub.url}/{name}/commit/{made.sha}"
        return self.send_json({"success": True, "commitUrl": url, "commitOid": made.sha})


class _StoreHandler(_Handler):
    def answer(self, path: str) -> None:
        if self.command in ("PUT", "POST"):
            _, _, oid, *part = path.split("/")
            while self.hub.store[oid][0].answers_drip == "store":
                self.wfile.write(b"y")
                time.sleep(0.1)
            return self.take(oid, int(part[0]) if part else None)
        repository, content = self.hub.store[path.removeprefix("/store/")]
        content = content[: len(content) - repository.shorter_by] + bytes(repository.longer_by)
        start = 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or ""):
            start = int(match[1])
            if start >= len(content):
                return self.fail(416)
        body = memoryview(content)[start:]
        while repository.weights_drip:
            self.wfile.write(b"y")
            time.sleep(0.1)
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
            if rate := repository.bytes_per_sec:
                time.sleep(CHUNK / rate)

    def take(self, oid: str, part: int | None) -> None:
        """A file, one of its parts, or the word that all parts were sent."""
        repository, _ = self.hub.store[oid]
        length = int(self.headers["Content-Length"])
        received = bytearray()
        while len(received) < length:
            received += self.rfile.read(min(CHUNK, length - len(received)))
            if repository.cut_uploads:
                repository.cut_uploads -= 1
                self.close_connection = True
                self.connection.close()
                return
            if rate := repository.bytes_per_sec:
                time.sleep(CHUNK / rate)
        body = bytes(received)
        if part is not None:
            self.hub.parts[oid, part] = body
            return self.send(200, ETag=hashlib.md5(body).hexdigest())
        if self.command == "POST":
            body = b"".join(
                self.hub.parts[oid, told["partNumber"]] for told in json.loads(body)["parts"]
            )
        if hashlib.sha256(body).hexdigest() != oid:
            return self.fail(400, "SHA-256 mismatch")
        self.hub.uploaded[oid] = body
        return self.send(200)
