"""What can stand on `cvt predict`'s command line, each with the real thing on the other end."""

import base64
import bz2
import contextlib
import email.message
import email.utils
import gzip
import io
import os
import re
import resource
import shutil
import signal
import socket
import struct
import tarfile
import threading
import time
import tracemalloc
import urllib.error
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from cvt_cli.base import limits
from cvt_cli.base.errors import ImageError
from cvt_cli.images import archives, finding, sources, web
from cvt_cli.images.finding import Passed
from cvt_cli.images.remote import images_at
from small_sets import Unflagged
from tests_shared import CHELSEA, TESTS, Machine

BOATS = TESTS / "photos" / "nagasaki-boats.jpg"
NANO = ["--model", "cvt-nano-cifar10", "--jsonl"]


class _Web(BaseHTTPRequestHandler):
    """Serves the boats, and lies."""

    def do_GET(self) -> None:
        content = BOATS.read_bytes()
        if self.path in ("/boats.jpg", "/caf%C3%A9%20%26.jpg?size=1%202&a=%C3%A9"):
            self.reply(200, content)
        elif self.path == "/status-drips.jpg":
            self.drip(b"HTTP/1.1 200 OK", b" " * 1000)
        elif self.path == "/header-drips.jpg":
            self.drip(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"y" * 1000)
        elif self.path == "/moved.jpg":
            self.reply(302, Location="/boats.jpg")
        elif self.path == "/private.jpg":
            allowed = "Basic " + base64.b64encode(b"me:s@cret").decode()
            known = self.headers["Authorization"] == allowed
            self.reply(*((200, content) if known else (401,)))
        elif self.path == "/to-private.jpg":
            self.reply(302, Location="/private.jpg")
        elif self.path == "/to-another-server.jpg":  # another port, and back again
            _, colon, port = self.headers["Host"].rpartition(":")
            host = "localhost" if "127" in self.headers["Host"] else "127.0.0.1"
            path = self.path if host == "localhost" else "/private.jpg"
            self.reply(302, Location=f"http://{host}{colon}{port}{path}")
        elif self.path == "/to-no-port.jpg":
            self.reply(302, Location=f"http://127.0.0.1:{'9' * 30}/")
        elif self.path == "/moved-at-length.jpg":
            self.send_response(302)
            self.send_header("Location", "/boats.jpg")
            self.end_headers()
            while True:
                self.wfile.write(content)
        elif self.path == "/loop.jpg":
            self.reply(302, Location="/loop.jpg")
        elif self.path == "/to-file.jpg":
            self.reply(302, Location=f"file://{BOATS}")
        elif self.path == "/page.jpg":
            self.reply(200, b"<html>sign in</html>")
        elif self.path == "/hangs.jpg":
            self.server.stop.wait(30)  # type: ignore[attr-defined]
        elif self.path == "/drips.jpg":
            self.reply(200, content[:100], length=len(content))
            while not self.server.stop.wait(0.05):  # type: ignore[attr-defined]
                self.wfile.write(b"x")
        elif self.path == "/short.jpg":
            self.reply(200, content[:1000], length=len(content))
        elif self.path.startswith("/busy"):  # /busy-429-2-3.jpg: so twice, "Retry-After: 3"
            status, times, *after = self.path.removesuffix(".jpg").split("-")[1:]
            asked = self.server.asked  # type: ignore[attr-defined]
            asked.append((self.path, time.monotonic()))
            if [path for path, _ in asked].count(self.path) > int(times):
                self.reply(200, content)
            elif status == "reset":  # unread or unanswered, as a server that ends
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0" * 2)
                self.connection.close()
            elif status == "closed":
                self.connection.shutdown(socket.SHUT_RDWR)
            elif status == "short":
                self.reply(200, content[:1000], length=len(content))
            elif status == "silent":
                self.server.stop.wait(5)  # type: ignore[attr-defined]
            else:
                self.reply(int(status), **({"Retry-After": after[0]} if after else {}))
        elif self.path == "/announces-5-gb.jpg":
            self.reply(200, content, length=5_000_000_000)
        elif self.path == "/endless.jpg":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(content)
        else:
            self.reply(404)

    def drip(self, start: bytes, rest: bytes) -> None:
        self.wfile.write(start)
        for byte in rest:
            if self.server.stop.wait(0.2):  # type: ignore[attr-defined]
                break
            self.wfile.write(bytes([byte]))

    def reply(
        self, status: int, content: bytes = b"", length: int | None = None, **headers: str
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    stop = threading.Event()

    def __init__(self, *told: object) -> None:
        super().__init__(*told)  # type: ignore[arg-type]
        self.asked: list[tuple[str, float]] = []  # what of "/busy", and when

    def handle_error(self, *_: object) -> None:  # the client went away, as it should
        pass


@pytest.fixture(scope="module")
def running() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Web) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.stop.set()
        running.shutdown()


@pytest.fixture
def server(running: _Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(web, "PAUSES_SEC", (0.01, 0.02))
    running.asked.clear()
    web._given_up.clear()
    return f"http://127.0.0.1:{running.server_port}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """2.jpg before 10.jpg, one deeper, one hidden, and something else."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name in ("10.jpg", "2.JPG", "deep/1.jpg", ".hidden.jpg"):
        shutil.copy(BOATS, folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


IN_FOLDER = ["2.JPG", "10.jpg", "deep/1.jpg"]


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, file.relative_to(folder))
    return path


def tarred(folder: Path, path: Path) -> Path:
    names = ["deep/1.jpg", ".hidden.jpg", "10.jpg", "notes.txt"]
    if (folder / "@eaDir").exists():
        names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name in names:
            archive.add(folder / name, arcname=name)
    return path


def in_memory(folder: Path) -> str:
    with fsspec.open("memory://shop/boats.jpg", "wb") as file:
        file.write(BOATS.read_bytes())
    return "memory://shop"


def with_what_systems_leave(folder: Path) -> Path:
    """Thumbnails, bins, hidden files, and pictures of other kinds beside the boats."""
    for place in ("@eaDir", "deep/@eaDir", "__MACOSX", "#recycle", ".Trash"):
        (folder / place).mkdir()
        shutil.copy(BOATS, folder / place / "1.jpg")
    for name in ("a.tga", "b.TGA", "c.psd", ".d.tga"):
        (folder / name).write_bytes(b"a picture")
    return folder


def remote(folder: Path) -> str:
    files = fsspec.filesystem("memory")
    files.rm("/share", recursive=True) if files.exists("/share") else None
    for path in folder.rglob("*"):
        if path.is_file():
            files.pipe(f"/share/{path.relative_to(folder)}", path.read_bytes())
    return "memory://share"


def test_what_is_not_there_behind_an_address_is_said_so(cvt, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    shutil.copy(BOATS, tmp_path / "folder")
    archive = zipped(tmp_path / "folder", tmp_path / "x.zip")
    addresses = ["memory://Nowhere/1.jpg", f"zip://Nowhere/1.jpg::{archive}"]

    found = cvt("predict", *addresses, *NANO)

    assert [one["error"] for one in found.json_lines] == ["no such file or directory"] * 2


@pytest.mark.parametrize(
    ("given", "suffixes"),
    [
        (lambda folder: folder, True),
        (lambda folder: f"file://{folder}", True),
        (lambda folder: folder / "**" / "*.[jJ]*", False),
        (lambda folder: zipped(folder, folder.parent / "a.zip"), True),
        (lambda folder: tarred(folder, folder.parent / "a.tar"), True),
        (remote, True),
        (lambda folder: f"{remote(folder)}/**/*.[jJ]*", False),
    ],
    ids="folder file pattern zip tar remote remote-pattern".split(),
)
def test_what_systems_leave_is_passed_over_and_said(
    folder: Path, given: Callable[[Path], object], suffixes: bool
) -> None:
    place, passed = given(with_what_systems_leave(folder)), Passed()

    found = [source.name for source in sources.sources([str(place)], passed)]

    assert sorted(os.path.basename(name) for name in found) == ["1.jpg", "10.jpg", "2.JPG"]
    assert not any("@eaDir" in name for name in found)
    said = str(passed)
    assert said.startswith("skipped: ")
    assert "2 `@eaDir`" in said and "1 `__MACOSX`" in said and "1 `#recycle`" in said
    assert ("files of other image types (2 .tga, 1 .psd)" in said) == suffixes


def test_what_was_passed_over_is_said_in_the_same_order_every_time(tmp_path: Path) -> None:
    names = ["#recycle", "#snapshot", "@Recycle", "@eaDir", "__MACOSX", "lost+found"]
    for name in names:
        (tmp_path / name).mkdir()
    passed = Passed()

    assert not list(finding.images_in(tmp_path, passed))

    assert ", ".join(f"1 `{name}`" for name in names) in str(passed)


def test_other_pictures_in_a_folder_are_named(cvt, tmp_path: Path) -> None:
    (tmp_path / "a.tga").write_bytes(b"a picture")

    alone = cvt("predict", tmp_path, *NANO)
    shutil.copy(BOATS, tmp_path)
    beside = cvt("predict", tmp_path, *NANO)

    said = "skipped: files of other image types (1 .tga)"
    assert (alone.exit_code, beside.exit_code) == (1, 0)
    assert f"no images in `{tmp_path}`; {said}" in alone.stderr
    assert beside.stderr == f"{said}\n"


def test_a_remote_pattern_finds_files_alone_and_a_name_may_look_like_one(
    cvt, tmp_path: Path
) -> None:
    for name in ("a[1].jpg", "inner/2.jpg"):
        fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/{name}", BOATS.read_bytes())
    place = f"memory://{tmp_path.name}"

    found = cvt("predict", f"{place}/*", *NANO)
    named = cvt("predict", f"{place}/a[1].jpg", *NANO)

    assert found.exit_code == named.exit_code == 0, found.stderr + named.stderr
    assert [line["path"] for line in found.json_lines + named.json_lines] == 2 * [
        f"{place}/a[1].jpg"
    ]


def test_archives_in_a_folder_or_in_an_archive_are_named_since_they_are_not_opened(
    cvt, tmp_path: Path
) -> None:
    inside = tmp_path / "all"
    inside.mkdir()
    shutil.copy(BOATS, inside)
    for name in ("a.zip", "b.tar.gz", "c.tgz", ".hidden.zip", "notes.gz"):
        (inside / name).write_bytes(b"an archive")
    packed = [shutil.make_archive(str(tmp_path / "all"), kind, inside) for kind in ("zip", "tar")]

    for place in (inside, *packed):
        result = cvt("predict", place, *NANO, "--jsonl")
        assert result.exit_code == 0 and len(result.json_lines) == 1
        assert result.stderr.startswith("skipped: archives, which are read only where they are ")
        assert all(f"1 {kind}" in result.stderr for kind in (".zip", ".tar.gz", ".tgz"))
        assert "2 " not in result.stderr


def test_a_local_address_is_written_in_results_as_it_was_given(cvt, folder: Path) -> None:
    given = [f"file://{folder}", f"FILE://{folder}/2.JPG", f"file://{folder}/1*.jpg"]

    lines = cvt("predict", *given, *NANO).json_lines

    wanted = [
        *(f"file://{folder}/{name}" for name in IN_FOLDER),
        given[1],
        f"file://{folder}/10.jpg",
    ]
    assert [line["path"] for line in lines] == wanted
    assert all(line["predictions"] for line in lines)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_a_list_may_begin_with_a_byte_order_mark(
    cvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    shutil.copy(BOATS, tmp_path / "ü.jpg")
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    content = f"{mark}{CHELSEA}\r\n{tmp_path / 'ü.jpg'}\r\n".encode(encoding)
    (tmp_path / "list.txt").write_bytes(content)
    with (tmp_path / "list.txt").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        by_stdin = list(sources.sources(["-"]))

    lines = cvt("predict", f"@{tmp_path / 'list.txt'}", *NANO).json_lines

    names = [str(CHELSEA), str(tmp_path / "ü.jpg")]
    assert [line["path"] for line in lines] == [source.name for source in by_stdin] == names
    assert all(line["predictions"] for line in lines)


def listed(folder: Path) -> str:
    path = folder.parent / "list.txt"
    path.write_text(f"{folder / '10.jpg'}\n\n{folder / '2.JPG'}\r\n")
    return f"@{path}"


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (lambda folder: folder / "2.JPG", ["2.JPG"]),
        (lambda folder: folder, IN_FOLDER),
        (lambda folder: folder / "*.[jJ]*", ["2.JPG", "10.jpg"]),
        (lambda folder: folder / "**" / "1*.jpg", ["10.jpg", "deep/1.jpg"]),
        (listed, ["10.jpg", "2.JPG"]),
        (lambda folder: zipped(folder, folder.parent / "a.zip"), ["deep/1.jpg", "2.JPG", "10.jpg"]),
        (lambda folder: tarred(folder, folder.parent / "a.tar"), ["deep/1.jpg", "10.jpg"]),
        (lambda folder: tarred(folder, folder.parent / "a.tgz"), ["deep/1.jpg", "10.jpg"]),
        (lambda folder: f"file://{folder}", IN_FOLDER),
        (lambda folder: f"file://{folder}/1*.jpg", ["10.jpg"]),
        (in_memory, ["boats.jpg"]),
    ],
    ids="file folder pattern deep-pattern list zip tar tgz fsspec fsspec-pattern memory".split(),
)
def test_every_input_is_answered(
    cvt, folder: Path, given: Callable[[Path], object], names: list[str]
) -> None:
    result = cvt("predict", given(folder), *NANO)

    assert result.exit_code == 0, result.stderr
    found = [line["path"] for line in result.json_lines]
    assert all(line["predictions"][0]["label"] == "ship" for line in result.json_lines)
    shown = [next(n for n in names if path.endswith(n)) for path in found]
    assert shown == names


def test_the_order_and_what_is_named_twice_are_kept(cvt, folder: Path) -> None:
    given = [folder / "10.jpg", CHELSEA, folder / "10.jpg", folder / "deep"]

    lines = cvt("predict", *given, *NANO, "--batch-size", 3).json_lines

    assert [line["path"] for line in lines] == [
        str(folder / "10.jpg"), str(CHELSEA), str(folder / "10.jpg"), str(folder / "deep/1.jpg")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (f"{CHELSEA}\n{BOATS}\n".encode(), [str(CHELSEA), str(BOATS)]),
        (BOATS.read_bytes(), ["-"]),
        (CHELSEA.read_bytes(), ["-"]),
        (b"P6\n# a light picture\n40 30\n255\n" + 3600 * b"w", ["-"]),
    ],
    ids=["paths", "jpeg", "png", "ppm"],
)
def test_stdin_holds_paths_or_one_image(machine: Machine, tmp_path: Path, given, names) -> None:
    path = tmp_path / "stdin"
    path.write_bytes(given)
    with path.open("rb") as file:
        machine.popen = {"stdin": file}
        result = machine.run("predict", "-", *NANO)

    assert result.exit_code == 0, result.stderr
    assert [line["path"] for line in result.json_lines] == names


def test_a_list_in_a_pipe_is_read_once(cvt) -> None:
    end, start = os.pipe()
    os.write(start, f"{CHELSEA}\n{BOATS}\n".encode())
    os.close(start)

    result = cvt("predict", f"@/dev/fd/{end}", *NANO)

    os.close(end)
    assert [line["path"] for line in result.json_lines] == [str(CHELSEA), str(BOATS)]


def test_what_can_be_read_only_once_is_known(tmp_path: Path) -> None:
    pipe, lines = tmp_path / "pipe", tmp_path / "list.txt"
    os.mkfifo(pipe)
    lines.write_text(f"{BOATS}\n")

    again = [str(BOATS), str(tmp_path), f"@{lines}", "@none.txt", "https://host/a.jpg"]
    assert sources.readable_once(again) is None
    assert sources.readable_once([*again, "-"]) == "-"
    assert sources.readable_once([f"@{pipe}", *again]) == f"@{pipe}"


@pytest.mark.parametrize("path", ["/boats.jpg", "/moved.jpg", "/moved-at-length.jpg"])
def test_an_address_on_the_web_is_fetched(
    cvt, server: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "DEADLINE_SEC", 5.0)
    result = cvt("predict", server + path, *NANO)

    (line,) = result.json_lines
    assert line["path"] == server + path
    assert line["predictions"][0]["label"] == "ship"


def test_an_address_is_sent_as_browsers_send_it_and_kept_as_it_was_written(
    cvt, server: str
) -> None:
    address = server.replace("http", "HTTP") + "/café &.jpg?size=1 2&a=é#part"
    address = address.replace("&.jpg", "%26.jpg")  # quoted already

    (line,) = cvt("predict", address, *NANO).json_lines

    assert line["path"] == address
    assert line["predictions"][0]["label"] == "ship"


@pytest.mark.parametrize(
    ("path", "user", "error"),
    [
        ("/private.jpg", "me:s%40cret", None),
        ("/private.jpg", "me:s@cret", None),
        ("/private.jpg", "me", "the server answered 401: Unauthorized"),
        ("/to-private.jpg", "me:s%40cret", None),
        ("/to-another-server.jpg", "me:s%40cret", "the server answered 401: Unauthorized"),
        ("/none.jpg", "me:s%40cret", "the server answered 404: Not Found"),
    ],
)
def test_a_user_and_password_in_an_address_are_sent_and_the_password_is_written_nowhere(
    cvt, server: str, tmp_path: Path, path: str, user: str, error: str | None
) -> None:
    address = server.replace("://", f"://{user}@") + path
    shown = server.replace("://", "://me:***@" if ":" in user else "://me@") + path
    table, written = tmp_path / "t.csv", tmp_path / "said.jsonl"
    table.write_text(f"path,label\n{BOATS},ship\n{CHELSEA},cat\n{address},ship\n")

    predicted = cvt("predict", address, *NANO)
    listed = cvt("predict", f"@{table}", *NANO)
    evaluated = cvt("evaluate", table, *NANO[:2], "--predictions", written, "--json")

    (line,) = predicted.json_lines
    assert line["path"] == shown and line.get("error") == error
    assert listed.json_lines[2]["path"] == shown
    assert evaluated.json["n"] == 3 and evaluated.json["n_failed"] == (error is not None)
    assert shown in written.read_text()
    results = (predicted, listed, evaluated)
    said = "".join(one.stdout + one.stderr for one in results) + written.read_text()
    assert "cret" not in said


class _OnAHost(MemoryFileSystem):
    """Has paths without the host, as those of ftp, sftp and others."""

    protocol = "onahost"
    store: ClassVar[dict[str, object]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(re.sub("^[a-z]+://[^/]*", "", path))


@pytest.mark.parametrize(
    ("place", "found"),
    [("", "shelf/1.png"), ("/", "shelf/1.png"), ("/shelf/", "shelf/1.png"),
     ("/shelf/*.png", "shelf/1.png"), ("/shelf/1.png", "shelf/1.png")],
)  # fmt: skip
def test_an_image_in_a_folder_of_a_server_is_called_by_its_whole_address(
    tmp_path: Path, place: str, found: str
) -> None:
    fsspec.register_implementation("onahost", _OnAHost, clobber=True)
    _OnAHost().pipe("/shelf/1.png", b"content")

    ((name, opened),) = images_at(f"onahost://me@server:1{place}", Passed())

    assert name == f"onahost://me@server:1/{found}"
    assert opened().read() == sources.source(name).open().read() == b"content"


@pytest.mark.parametrize("cache", ["", "simplecache::"])
def test_a_tar_at_an_address_is_read_by_one_thread_at_a_time(tmp_path: Path, cache: str) -> None:
    files = {f"{number:03}.bmp": bytes([number]) * 50_000 for number in range(100)}
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    found = list(images_at(f"{cache}tar://*.bmp::file://{tmp_path}/a.tar", Passed()))

    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(lambda one: one[1]().read(), found))

    assert read == list(files.values())


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("no-such://me:s@cret@host/a.jpg", "`no-such://me:***@host/a.jpg`: no such protocol;"),
        ("simplecache::http://me:s@cret@127.0.0.1:9/a.jpg", "simplecache::http://me:***@127.0.0.1"),
    ],
)
def test_the_password_in_an_address_that_fsspec_opens_is_written_nowhere(
    cvt, address: str, said: str
) -> None:
    result = cvt("predict", address, *NANO)

    assert result.exit_code != 0
    assert said in result.stderr and "cret" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("address", "sent"),
    [
        ("https://bücher.example:8080/ö", "https://xn--bcher-kva.example:8080/%C3%B6"),
        ("http://host/100%.jpg?q=[a]", "http://host/100%.jpg?q=[a]"),
        (" http://host/a b", "http://host/a%20b"),
    ],
)
def test_other_letters_are_quoted_and_what_browsers_leave_is_left(address: str, sent: str) -> None:
    assert web.quoted(address) == sent


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/none.jpg", "the server answered 404: Not Found"),
        ("/page.jpg", "not an image, or of a type that Pillow cannot read"),
        ("/loop.jpg", "the server answered 302: redirects without end"),
        ("/to-file.jpg", "Redirection to url 'file:"),
        ("/to-no-port.jpg", "cannot be downloaded: "),
        ("/hangs.jpg", "no answer within 1 s, tried 3 times"),
        ("/drips.jpg", "not complete after 1 s"),
        ("/status-drips.jpg", "not complete after 1 s"),
        ("/header-drips.jpg", "not complete after 1 s"),
        ("/short.jpg", "ended after 1,000 of"),
        ("/announces-5-gb.jpg", "too large: more than 3,000,000 bytes"),
        ("/endless.jpg", "too large: more than 3,000,000 bytes"),
    ],
)
def test_a_hostile_server_costs_one_line(
    cvt, server: str, monkeypatch: pytest.MonkeyPatch, path: str, reason: str
) -> None:
    monkeypatch.setattr(web, "TIMEOUT_SEC", 1.0)
    monkeypatch.setattr(web, "DEADLINE_SEC", 1.0 if "drips" in path else 5.0)
    monkeypatch.setattr(limits, "LARGEST_FILE", 3_000_000)

    result = cvt("predict", server + path, CHELSEA, *NANO)

    bad, good = result.json_lines
    assert result.exit_code == 1
    assert reason in bad["error"], bad
    assert good["predictions"]


@pytest.mark.parametrize("how", "429 500 502 503 504 503-2-1 reset closed short silent".split())
def test_a_server_that_fails_for_a_moment_is_asked_again(
    cvt, server: str, running: _Server, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(web, "TIMEOUT_SEC", 1.0)
    path = f"/busy-{how}-2.jpg" if how.count("-") == 0 else f"/busy-{how}.jpg"

    (line,) = cvt("predict", server + path, *NANO).json_lines

    assert line["predictions"][0]["label"] == "ship"
    assert len(running.asked) == 3
    if how == "503-2-1":  # "Retry-After: 1"
        (_, first), (_, second), (_, third) = running.asked
        assert second - first >= 1 and third - second >= 1


@pytest.mark.parametrize(
    ("path", "tried", "reason"),
    [
        ("/busy-503-9.jpg", 3, "the server answered 503: Service Unavailable, tried 3 times"),
        ("/busy-short-9.jpg", 3, " bytes, tried 3 times"),
        ("/busy-closed-9.jpg", 3, "closed connection without response, tried 3 times"),
        # More than is waited for.
        ("/busy-429-9-3600.jpg", 1, "the server answered 429: Too Many Requests"),
        ("/busy-403-9.jpg", 1, "the server answered 403: Forbidden"),
        ("/busy-501-9.jpg", 1, "the server answered 501: Not Implemented"),
    ],
)
def test_an_image_that_cannot_be_had_says_how_often_it_was_asked_for(
    cvt, server: str, running: _Server, path: str, tried: int, reason: str
) -> None:
    (line,) = cvt("predict", server + path, *NANO).json_lines

    assert line["error"].endswith(reason)
    assert len(running.asked) == tried


def test_a_server_that_fails_for_long_is_asked_once_for_each_image_until_it_gives_one(
    cvt, server: str, running: _Server
) -> None:
    bad = [f"{server}/busy-503-99.jpg"] * 6

    errors = cvt("predict", *bad, "--workers", 1, *NANO).json_lines
    good = [f"{server}/boats.jpg", f"{server}/busy-503-1.jpg"]
    again = cvt("predict", *good, "--workers", 1, *NANO).json_lines

    tried = [line["error"].rpartition(", ")[2] for line in errors]
    assert tried == ["tried 3 times"] * 3 + [errors[-1]["error"]] * 3
    assert "tried" not in errors[-1]["error"]
    assert all(line["predictions"] for line in again)
    assert len(running.asked) == 3 * 3 + 3 + 2


@pytest.mark.parametrize(
    ("asked", "pause"),
    [
        ("120", 120.0),
        ("{in 1000 s}", 1000.0),
        ("{1000 s ago}", -1000.0),
        ("soon", 0.0),
        ("", 0.0),
        ("9" * 500, float("inf")),
        ("Fri, 99 Nov 2026 12:00:00 GMT", 0.0),
    ],
)
def test_a_pause_is_asked_for_in_seconds_or_until_a_time(asked: str, pause: float) -> None:
    times = {"in 1000 s": 1000, "1000 s ago": -1000}
    dates = {
        name: email.utils.formatdate(time.time() + seconds, usegmt=True)
        for name, seconds in times.items()
    }
    headers = email.message.Message()
    headers["Retry-After"] = asked.format_map(dates)
    error = urllib.error.HTTPError("http://host/a.jpg", 503, "busy", headers, None)

    assert web._pause_asked_for(error) == pytest.approx(pause, abs=100)


def test_ctrl_c_waits_neither_for_an_answer_nor_for_a_pause(
    machine: Machine, server: str, running: _Server
) -> None:
    silent, busy = f"{server}/hangs.jpg", f"{server}/busy-503-99-25.jpg"
    with machine.start("predict", silent, busy, *NANO) as process:
        while not running.asked:
            time.sleep(0.1)
        time.sleep(0.3)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)

    assert process.returncode == 130
    assert time.monotonic() - started < 5


def test_a_proxy_that_drips_is_waited_for_no_longer_than_a_server(cvt, monkeypatch) -> None:
    monkeypatch.setattr(web, "TIMEOUT_SEC", 1.0)
    monkeypatch.setattr(web, "DEADLINE_SEC", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")

        def drip() -> None:
            client, _ = proxy.accept()
            with client, contextlib.suppress(OSError):
                client.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                for _ in range(30):
                    client.sendall(b"y")
                    time.sleep(0.2)

        thread = threading.Thread(target=drip)
        thread.start()
        started = time.monotonic()
        result = cvt("predict", "https://example.org/a.jpg", *NANO)
        took = time.monotonic() - started
        thread.join()

    assert result.json_lines[0]["error"] == "not complete after 2 s"
    assert took < 5


def test_a_server_that_is_not_there_is_named(cvt) -> None:
    result = cvt("predict", "http://127.0.0.1:9/a.jpg", *NANO)

    assert "`http://127.0.0.1:9/a.jpg`: cannot be downloaded: [Errno" in result.stderr


def hostile_tar(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        archive.add(BOATS, arcname="../../out.jpg")
        for name, kind in (("link.jpg", tarfile.SYMTYPE), ("device.jpg", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        archive.add(BOATS, arcname="last.jpg")
    return path


def test_a_tar_is_never_unpacked(cvt, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    path = hostile_tar(tmp_path / "inner" / "a.tar")

    out, link, device, last = cvt("predict", path, *NANO).json_lines

    assert out["path"] == f"{path}/../../out.jpg" and out["predictions"]
    assert "a link or device in an archive, which is not followed" in link["error"]
    assert "a link or device" in device["error"]
    assert last["predictions"]
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["a.tar"]


def zeros(path: Path, members: int) -> Path:
    """A .tar whose members are as large as they may be and take no room on the disk."""
    with path.open("wb") as file:
        for number in range(members):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = limits.LARGEST_FILE - tarfile.BLOCKSIZE
            file.write(member.tobuf())
            file.seek(member.size, os.SEEK_CUR)
        file.truncate(file.tell() + 2 * tarfile.BLOCKSIZE)
    return path


def table_of_holes(pieces: int) -> bytes:
    """The headers of a file with holes in a tar archive, as GNU tar writes them."""
    header = tarfile.TarInfo("holes.png")
    header.type = tarfile.GNUTYPE_SPARSE
    start = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    start[482] = 1  # more of the table follows
    start[148:156] = b" " * 8
    start[148:156] = b"%06o\0 " % sum(start)
    block = (b"00000000001\0" * 42 + b"\1").ljust(tarfile.BLOCKSIZE, b"\0")
    return bytes(start) + block * (pieces // 21) + bytes(3 * tarfile.BLOCKSIZE)


def with_peak(machine: Machine, *command):
    """What a command says, and the most bytes of memory that it was seen to hold."""
    process = machine.start(*command)
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(OSError), open(f"/proc/{process.pid}/statm") as file:
            peak = max(peak, int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        time.sleep(0.01)
    return machine.wait(process), peak


def test_what_kilobytes_unpack_to_is_not_held_whole(machine: Machine, tmp_path: Path) -> None:
    zeroes, times = bytes(32 * 1024**2), 16
    text = tarfile.TarInfo("zeroes.txt")
    text.size = times * len(zeroes)
    tar = text.tobuf() + times * zeroes + bytes(2 * tarfile.BLOCKSIZE)
    # Streams one after another, of which one is compressed: that is what takes time.
    rest = bz2.compress(bytes(2 * tarfile.BLOCKSIZE))
    (tmp_path / "a.tar.bz2").write_bytes(
        bz2.compress(text.tobuf()) + times * bz2.compress(zeroes, 1) + rest
    )
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_BZIP2, compresslevel=1) as archive:
        archive.writestr("zeroes.png", tar)
        archive.write(BOATS, "boats.jpg")
    says_1000 = (
        (tmp_path / "a.zip").read_bytes().replace(len(tar).to_bytes(4, "little"), b"\xe8\3\0\0")
    )
    (tmp_path / "a.zip").write_bytes(says_1000)
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, times * len(zeroes)
    (tmp_path / "a.tar.gz").write_bytes(
        gzip.compress(name.tobuf()) + times * gzip.compress(zeroes, 1)
    )
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(table_of_holes(4_000_000), 1))
    archives = [tmp_path / "a.zip", *tmp_path.glob("a.tar.*2"), *sorted(tmp_path.glob("*.gz"))]

    result, peak = with_peak(machine, "predict", *archives, BOATS, *NANO)

    in_zip, beside, in_bz2, *in_gz, boats = result.json_lines
    assert "damaged in the archive" in in_zip["error"]
    assert beside["predictions"][0]["label"] == boats["predictions"][0]["label"]
    assert in_bz2["error"] == "no images there"
    assert len(in_gz) == 2
    assert all(
        "the headers of a member have more than 1,048,576 bytes" in line["error"] for line in in_gz
    )
    assert peak < 1_000_000_000


def test_what_lzma_unpacks_beyond_its_announced_size_is_not_held_whole(tmp_path: Path) -> None:
    zeroes = bytes(128 * 1024**2)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("zeroes.png", zeroes)
        archive.write(BOATS, "boats.jpg")
    size = len(zeroes).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, b"\xe8\3\0\0"))
    index = archives.zip_index(path)

    tracemalloc.start()
    with pytest.raises(ImageError, match="damaged in the archive: Bad CRC-32"):
        index.open("zeroes.png")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < len(zeroes)
    assert index.open("boats.jpg").read() == BOATS.read_bytes()


def test_large_members_of_archives_are_not_in_memory_together(
    machine: Machine, tmp_path: Path
) -> None:
    members = limits.contents.most // limits.LARGEST_FILE + 7
    tar = zeros(tmp_path / "a.tar", members)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("0.png", bytes(limits.LARGEST_FILE))
    given = [tar, *[tmp_path / "a.zip"] * members, BOATS]

    result, peak = with_peak(machine, "predict", *given, *NANO, "--workers", members)

    *zeroes, boats = result.json_lines
    assert boats["predictions"]
    assert len(zeroes) == 2 * members
    assert all("not an image" in line["error"] for line in zeroes)
    # Python, torch and the model have some 400 MB; a file is there twice when it has been read.
    assert peak < 2 * limits.contents.most + 600_000_000 < len(zeroes) * limits.LARGEST_FILE


def test_a_run_in_a_zip_is_passed_over_as_in_a_folder(cvt, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("runs/1/plots/curves.jpg", "run/curves.jpg", "photos/boats.jpg", "top.jpg"):
            archive.write(BOATS, name)
        for run in ("run", "runs/1"):
            archive.writestr(f"{run}/plan.json", "{}")
            archive.writestr(f"{run}/split.json", "{}")

    result = cvt("predict", tmp_path / "a.zip", "--model", "cvt-nano-cifar10", "--jsonl")

    assert result.exit_code == 0, result.stderr
    answered = [line["path"] for line in result.json_lines]
    assert answered == [f"{tmp_path}/a.zip/photos/boats.jpg", f"{tmp_path}/a.zip/top.jpg"]
    assert "1 `runs`" in result.stderr and "1 `run`" in result.stderr


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("plan_is_first", [True, False])
def test_a_run_in_a_tar_is_passed_over_as_in_a_folder(
    cvt, tmp_path: Path, mode: str, plan_is_first: bool
) -> None:
    (tmp_path / "plan.json").write_text("{}")
    pictures = ["./run/curves.png", "photos/curves.png", "photos/boats.jpg", "top.jpg"]
    plans = ["run/plan.json", "run/split.json"]
    with tarfile.open(tmp_path / "a.tar", mode) as archive:
        for name in plans + pictures if plan_is_first else pictures + plans:
            archive.add(tmp_path / "plan.json" if name in plans else BOATS, name)

    result = cvt("predict", tmp_path / "a.tar", "--model", "cvt-nano-cifar10", "--jsonl")

    assert result.exit_code == 0, result.stderr
    answered = {line["path"] for line in result.json_lines}
    assert answered == {f"{tmp_path}/a.tar/{name}" for name in pictures[1:]}
    assert "1 `run`" in result.stderr


@pytest.mark.parametrize("place", ["/*/*.jpg", "/**/*.jpg", "/**", "file", "file/**/*.jpg"])
def test_a_run_at_an_address_or_below_a_pattern_is_passed_over(
    cvt, tmp_path: Path, place: str
) -> None:
    for name in ("run/curves.jpg", "photos/boats.jpg"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(BOATS, tmp_path / name)
    for name in ("plan.json", "split.json"):
        (tmp_path / "run" / name).write_text("{}")
    protocol, _, pattern = place.partition("/")
    # `local` is the other name of the file system that `file` opens, and is not read as a path.
    address = f"local://{tmp_path}" if protocol else str(tmp_path)

    result = cvt(
        "predict", f"{address}/{pattern}".rstrip("/"), "--model", "cvt-nano-cifar10", "--jsonl"
    )

    answered = [Path(line["path"]).name for line in result.json_lines if "error" not in line]
    assert answered == ["boats.jpg"]
    assert "1 `run`" in result.stderr


def test_a_run_that_a_pattern_names_is_searched(cvt, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(BOATS, tmp_path / "run" / "curves.png")
    for name in ("plan.json", "split.json"):
        (tmp_path / "run" / name).write_text("{}")

    for pattern in ("run/*.png", "run/**/*.png", "*/curves.png"):
        result = cvt("predict", tmp_path / pattern, "--model", "cvt-nano-cifar10", "--jsonl")
        assert [Path(line["path"]).name for line in result.json_lines] == ["curves.png"]


def test_many_archives_are_read_with_few_open_files(cvt, tmp_path: Path) -> None:
    small = io.BytesIO()
    Image.new("RGB", (32, 32), "navy").save(small, "PNG")
    lines = []
    for number in range(150):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            archive.writestr(f"{number}.png", small.getvalue())
        lines.append(f"{tmp_path}/{number}.zip\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(128, hard), hard))
    try:
        results = [
            cvt("predict", f"@{tmp_path / 'list.txt'}", *NANO, "--batch-size", size)
            for size in (4, 64)
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    for result in results:
        assert result.exit_code == 0, result.stderr[:500]
        assert [line["path"] for line in result.json_lines] == [
            f"{tmp_path}/{number}.zip/{number}.png" for number in range(150)
        ]


def test_a_zip_that_another_has_replaced_is_read_anew_in_one_process(tmp_path: Path) -> None:
    for name, picture in (("first", BOATS), ("second", CHELSEA)):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.write(picture, "picture.jpg")
        os.replace(tmp_path / name, tmp_path / "a.zip")

        (found,) = sources.sources([str(tmp_path / "a.zip")])

        with found.open() as file:
            assert file.read() == picture.read_bytes()


def test_a_zip_bomb_is_not_expanded(cvt, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(limits, "LARGEST_FILE", 3_000_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(50_000_000))
        archive.write(BOATS, "boats.jpg")

    bomb, boats = cvt("predict", tmp_path / "a.zip", *NANO).json_lines

    assert bomb["error"] == "too large: more than 3,000,000 bytes"
    assert boats["predictions"]


def test_a_large_member_ends_a_tar_that_would_have_to_be_unpacked(
    cvt, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(limits, "LARGEST_FILE", 3_000_000)
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        archive.add(BOATS, arcname="boats.jpg")
        bomb = tarfile.TarInfo("bomb.png")
        bomb.size = 50_000_000
        archive.addfile(bomb, io.BytesIO(bytes(bomb.size)))

    boats, end = cvt("predict", tmp_path / "a.tgz", *NANO).json_lines

    assert boats["predictions"]
    assert "too large" in end["error"] and "the archive is not read further" in end["error"]


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
def test_a_damaged_archive_is_named_and_what_came_before_is_answered(
    cvt, tmp_path: Path, folder: Path, name: str
) -> None:
    whole = (zipped if name.endswith("zip") else tarred)(folder, tmp_path / name)
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])

    result = cvt("predict", whole, CHELSEA, *NANO)

    assert result.exit_code == 1
    *before, bad, good = result.json_lines
    assert all("predictions" in line for line in before)
    assert str(whole) in bad["path"] and "error" in bad
    assert good["path"] == str(CHELSEA) and good["predictions"]


def test_content_that_gzip_knows_to_be_damaged_is_no_content(
    cvt, tmp_path: Path, folder: Path
) -> None:
    """A flipped bit of a JPEG is another picture, of which only the checksum tells."""
    content = tarred(folder, tmp_path / "a.tar").read_bytes()
    packed = bytearray(gzip.compress(content, 0))
    packed[packed.find(BOATS.read_bytes()[:64]) + 100_000] ^= 0x55
    whole, damaged = tmp_path / "whole.tgz", tmp_path / "damaged.tgz"
    whole.write_bytes(gzip.compress(content))
    damaged.write_bytes(packed)

    assert cvt("predict", whole, *NANO).exit_code == 0
    result = cvt("predict", damaged, *NANO)

    assert result.exit_code == 1
    assert "CRC check failed" in result.json_lines[-1]["error"]


def test_gzip_files_one_behind_the_other_are_one_archive(cvt, tmp_path: Path, folder: Path) -> None:
    """As bgzip writes it, and `cat` of two."""
    content = tarred(folder, tmp_path / "a.tar").read_bytes()
    path = tmp_path / "a.tgz"
    path.write_bytes(gzip.compress(content[:100_000]) + gzip.compress(content[100_000:]))

    lines = cvt("predict", path, *NANO).json_lines

    assert [line["path"] for line in lines] == [f"{path}/deep/1.jpg", f"{path}/10.jpg"]
    assert all(line["predictions"] for line in lines)


@pytest.mark.parametrize("name", ["a.tar", "a.tgz"])
def test_a_damaged_header_in_a_tar_is_no_end(cvt, tmp_path: Path, name: str) -> None:
    member = tarfile.TarInfo("1.jpg")
    member.size = BOATS.stat().st_size
    content = member.tobuf() + BOATS.read_bytes() + bytes(-member.size % tarfile.BLOCKSIZE)
    whole = bytearray(3 * content + bytes(2 * tarfile.BLOCKSIZE))
    whole[len(content)] ^= 0xFF  # the second member's name, which its checksum covers
    path = tmp_path / name
    path.write_bytes(gzip.compress(whole) if name == "a.tgz" else whole)

    result = cvt("predict", path, *NANO)

    assert result.exit_code == 1
    good, bad = result.json_lines
    assert good["predictions"]
    assert f"not read further: no header of a member at byte {len(content):,}" in bad["error"]


def test_a_pattern_of_any_depth_follows_no_links_and_says_so(cvt, folder: Path) -> None:
    """Two that lead to where they are would be a million million ways to each image."""
    for name in ("here", "there"):
        (folder / name).symlink_to(".")

    result = cvt("predict", folder / "**/*.jpg", *NANO)

    names = [line["path"] for line in result.json_lines]
    assert names == [str(folder / name) for name in ("10.jpg", "deep/1.jpg")]
    assert f"skipped: links to folders (2, such as `{folder / 'here'}`)" in result.stderr


def test_folders_may_lie_a_thousand_deep(cvt, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = os.open(".", os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=place)
        above, place = place, os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(above)
    with open(os.open("1.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=place), "wb") as file:
        file.write(BOATS.read_bytes())
    os.close(place)

    found = cvt("predict", "d", *NANO)
    pattern = cvt("predict", "d/**/*.jpg", *NANO)
    measured = cvt("evaluate", "--data", "d", "--model", "cvt-nano-cifar10")

    deepest = "/".join(["d"] * 1200)
    assert [line["path"] for line in found.json_lines] == [f"{deepest}/1.jpg"]
    assert found.json_lines[0]["predictions"]
    assert [line["path"] for line in pattern.json_lines] == [f"{deepest}/1.jpg"]
    assert "are not classes of the model, which has 10: d" in measured.stderr
    while deepest:  # which shutil would go down by calling itself
        for one in Path(deepest).iterdir():
            one.unlink() if one.is_file() else one.rmdir()
        deepest = deepest.rpartition("/")[0]


def test_a_member_without_a_name_is_none(cvt, tmp_path: Path) -> None:
    unnamed = zipfile.ZipInfo("x")
    unnamed.filename = ""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(CHELSEA, "cat.png")
        with archive.open(unnamed, "w") as file:
            file.write(b"x")

    (line,) = cvt("predict", tmp_path / "a.zip", *NANO).json_lines

    assert line["path"] == f"{tmp_path}/a.zip/cat.png" and line["predictions"]


def test_names_in_a_zip_that_do_not_say_their_encoding_are_utf8_if_their_bytes_are(
    cvt, tmp_path: Path
) -> None:
    """UTF-8 of macOS and of Linux, accents as they are written; CP437 of DOS; Info-ZIP's own
    field, which is not believed where it was made of another name; a name that is flagged."""
    of_dos = os.fsdecode("Übung.png".encode("cp437"))
    names = {
        "Köter/猫.png": "Köter/猫.png",
        "Ko\u0308ter/1.png": "Ko\u0308ter/1.png",
        of_dos: "Übung.png",
        "#U732b.png": "猫.png",
        "stale.png": "stale.png",
    }
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            member = Unflagged(name)
            if name in ("#U732b.png", "stale.png"):
                field = struct.pack("<BL", 1, zlib.crc32(b"#U732b.png")) + "猫.png".encode()
                member.extra = struct.pack("<HHHH", 0x9999, 2, 0, 0x7075)
                member.extra += struct.pack("<H", len(field)) + field
            archive.writestr(member, CHELSEA.read_bytes())
        archive.write(CHELSEA, "Œuvre.png")
    meant = [*names.values(), "Œuvre.png"]

    ran = cvt("predict", path, *NANO)
    of_zip = ran.json_lines
    of_address = cvt("predict", f"zip://**/*.png::{path}", *NANO).json_lines
    named = cvt("predict", f"simplecache::zip://Köter/猫.png::file://{path}", *NANO).json_lines

    assert [line["path"] for line in of_zip] == [f"{path}/{name}" for name in meant]
    addresses = [line["path"] for line in of_address]
    assert sorted(addresses) == sorted(f"zip://{name}::{path}" for name in meant)
    assert all(line["predictions"] for line in (*of_zip, *of_address, *named))
    told = f"names in archives of unknown encoding, read as CP437 (1, such as `{path}/Übung.png`)"
    assert told in " ".join(ran.stderr.split())


def test_an_encrypted_member_is_an_unreadable_image(cvt, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(BOATS, "boats.jpg")
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag in the local and in the central header
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)

    (line,) = cvt("predict", path, *NANO).json_lines

    assert "damaged in the archive: " in line["error"] and "encrypted" in line["error"]


def test_an_input_without_images_is_reported_and_the_others_are_answered(
    cvt, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    given = [tmp_path / "empty", tmp_path / "*.jpg", "@none.txt", tmp_path / "gone.jpg", CHELSEA]

    result = cvt("predict", *given, *NANO)

    assert result.exit_code == 1
    assert [line.get("error") for line in result.json_lines] == [
        "no images there", "no images there", "no such file or directory",
        "no such file or directory", None,
    ]  # fmt: skip
    assert "4 of 5 images could not be read" in result.stderr


@pytest.mark.parametrize("most_held", [sources.MOST_HELD, 2])
def test_as_many_images_are_given_as_were_counted(folder: Path, monkeypatch, most_held) -> None:
    monkeypatch.setattr(sources, "MOST_HELD", most_held)
    inputs = [str(folder), str(folder / "none"), str(folder / "*.jpg")]
    expected = [source.name for source in sources.sources(inputs)]

    listing = sources.Listing(inputs)
    part = sources.Listing(inputs, is_wanted=lambda name: name == expected[0])

    assert listing.total == len(expected) > 2 and not listing.is_empty
    assert [source.name for source in listing] == expected
    assert {source.name for source in part} == {expected[0]}
    assert part.total == expected.count(expected[0])


def test_a_folder_is_listed_once_to_be_counted_and_read(folder: Path) -> None:
    listing = sources.Listing([str(folder)])
    (folder / "later.png").write_bytes(b"later")

    assert len(list(listing)) == listing.total


@pytest.mark.parametrize("most_held", [sources.MOST_HELD, 2])
def test_what_only_reading_tells_is_not_counted_and_given_whole(
    folder: Path, tmp_path: Path, monkeypatch, most_held: int
) -> None:
    monkeypatch.setattr(sources, "MOST_HELD", most_held)
    with tarfile.open(tmp_path / "more.tar", "w") as archive:
        archive.add(folder, "inside")
    inputs = [str(folder), f"file://{tmp_path / 'more.tar'}", str(folder)]

    listing = sources.Listing(inputs)
    nothing = sources.Listing([str(tmp_path / "*.none"), str(tmp_path / "no-*")])

    assert listing.total is None and not listing.is_empty
    found = [source.name for source in listing]
    assert found == [source.name for source in sources.sources(inputs)]
    assert nothing.is_empty and nothing.total == len(list(nothing)) == 2


def test_a_file_that_vanishes_after_it_was_listed_is_reported(folder: Path) -> None:
    found = list(sources.sources([str(folder)]))
    (folder / "10.jpg").unlink()

    with pytest.raises(sources.ImageError, match="no such file or directory"):
        found[1].load(exif=True)
    assert found[2].load(exif=True).mode == "RGB"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://bucket/a.jpg", "needs a package that is not installed: Install s3fs"),
        ("nonsense://a.jpg", "no such protocol; accepted are `http`"),
    ],
)
def test_an_address_that_nothing_opens_is_a_usage_error(cvt, address: str, message: str) -> None:
    result = cvt("predict", address, *NANO)

    assert result.exit_code == 2
    assert message in result.stderr


def test_fast_decode_reads_large_photographs_at_a_part_of_their_size_and_says_so(
    cvt, tmp_path: Path
) -> None:
    path = tmp_path / "large.jpg"
    with Image.open(BOATS) as boats:
        boats.resize((3000, 2400)).save(path)

    exact = cvt("predict", path, "--model", "cvt-nano-cifar10", "--json")
    fast = cvt("predict", path, "--model", "cvt-nano-cifar10", "--json", "--fast-decode")

    assert "results differ slightly" in fast.stderr
    assert "differ" not in exact.stderr
    assert (exact.json["fast_decode"], fast.json["fast_decode"]) == (False, True)
    own, other = (r.json["results"][0]["predictions"][0] for r in (exact, fast))
    assert own["label"] == other["label"]
    assert own["score"] == pytest.approx(other["score"], abs=0.05)


def test_members_of_a_zip_in_thousands_of_folders_and_of_one_name(cvt, tmp_path: Path) -> None:
    content = CHELSEA.read_bytes()
    with zipfile.ZipFile(tmp_path / "deep.zip", "w") as archive:
        archive.writestr("a/" * 30_000 + "1.png", content)
    with zipfile.ZipFile(tmp_path / "same.zip", "w") as archive:
        for name in ("1.png", "../1.png", "2.png"):
            archive.writestr(name, content)
    model = ("--model", "cvt-nano-cifar10", "--engine", "torch")

    for command in (("predict",), ("evaluate", "--data")):
        result = cvt(*command, tmp_path / "deep.zip", *model)
        assert result.exit_code == 1 and "a member lies 30,000 folders deep" in result.stderr
    result = cvt("predict", tmp_path / "same.zip", "--jsonl", *model)
    assert len(result.stdout.splitlines()) == 2
    said = "members of archives that have one name with a later one (1, such as"
    assert said in result.stderr


def test_a_name_may_have_more_digits_than_python_makes_a_number_of(cvt, tmp_path: Path) -> None:
    names = [f"cat/{digits}.png" for digits in ("2", "9" * 5000, "10")]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in (*names, "dog/0.png"):
            archive.write(CHELSEA, name)

    found = cvt("predict", f"zip://cat/*::{tmp_path / 'a.zip'}", *NANO)
    judged = cvt("evaluate", "--data", tmp_path / "a.zip", "--model", "cvt-nano-cifar10", "--json")

    paths = [line["path"].partition("::")[0] for line in found.json_lines]
    assert paths == [f"zip://{names[place]}" for place in (0, 2, 1)]
    assert judged.json["n"] == 4


def test_a_list_on_stdin_that_names_nothing_is_no_success() -> None:
    result = Machine(Path(), dict(os.environ)).run("predict", "-", "--model", "cvt-nano-cifar10")

    assert result.exit_code == 1 and "error: no images in `-`" in result.stderr


def test_a_local_address_without_its_third_slash_is_named_so_that_it_can_be_given_again(
    cvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(CHELSEA, tmp_path / "1.png")
    monkeypatch.chdir(tmp_path)

    address = "file://1.png"
    for _ in range(2):  # the second time as it was named the first
        result = cvt("predict", address, "--model", "cvt-nano-cifar10", "--jsonl")
        (answer,) = result.json_lines
        address = answer["path"]
        assert address == f"file://{tmp_path}/1.png" and result.exit_code == 0


def test_one_address_in_another_is_named_so_that_it_can_be_given_again(
    cvt, folder: Path, tmp_path: Path
) -> None:
    zipped(folder, tmp_path / "a.zip")

    for given, found in (
        (f"zip://1*.jpg::{tmp_path}/a.zip", f"zip://10.jpg::{tmp_path}/a.zip"),
        (f"simplecache::file://{folder}/1*.jpg", f"simplecache::file://{folder}/10.jpg"),
    ):
        for address in (given, found):
            (answer,) = cvt("predict", address, *NANO).json_lines
            assert answer["path"] == found and answer["predictions"]


def test_a_file_system_that_cannot_be_opened_costs_one_line(cvt) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"ftp://127.0.0.1:{closed.getsockname()[1]}/a.jpg"

    result = cvt("predict", address, "generic://a.jpg", CHELSEA, *NANO)

    refused, strange, good = result.json_lines
    assert result.exit_code == 1
    assert refused == {"path": address, "error": "connection refused"}
    assert strange["error"] and good["predictions"]
