"""An image from the web, whole and within limits of size and time."""

import base64
import contextlib
import http.client
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, BinaryIO

from cvt_cli.base import limits
from cvt_cli.base.errors import ImageError
from cvt_cli.base.package import __version__
from cvt_cli.images import decode

TIMEOUT_SEC = 10.0
"""For which a server may be silent."""

DEADLINE_SEC = 60.0
"""For one image, however slowly its bytes come."""

UNCOUNTED = 4 * 1024**2
"""Bytes of an image that are read before room is asked for, where its length is not announced."""

_CHUNK = 1024**2

# What a browser sends as it stands of a path and of a query; "%" since it may be quoted already.
_KEPT = "/%:=&?~+!$,;'@()*[]|"


def quoted(address: str) -> str:
    """An address as browsers send it: other letters and spaces as %XX, other hosts in ASCII.

    Raises:
        ValueError: it has no host, or one that has no form in ASCII.
    """
    parts = urllib.parse.urlsplit(address.strip())
    if not parts.hostname:
        raise ValueError("no host given")
    host = parts.netloc
    if not host.isascii():
        user, at, place = host.rpartition("@")
        name, colon, port = place.partition(":")
        host = _quoted(user) + at + name.encode("idna").decode() + colon + port
    path, query = _quoted(parts.path), _quoted(parts.query)
    return urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe=_KEPT, errors="surrogateescape")


class _Deadline:
    """Ends the connections that it watches when the time is up, whatever they wait for."""

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._left = seconds
        self._lock = threading.Lock()
        self._watched: list[socket.socket] = []
        self.go_on()

    def watch(self, connection: socket.socket) -> None:
        """End it too; raises TimeoutError if the time is up already."""
        with self._lock:
            if self.passed:
                raise TimeoutError
            # A copy, since TLS takes the connection over.
            self._watched.append(connection.dup())

    def pause(self) -> None:
        """Let no time pass; `go_on` ends it."""
        self._timer.cancel()
        self._left -= time.monotonic() - self._since

    def go_on(self) -> None:
        self._since = time.monotonic()
        self._timer = threading.Timer(max(0.0, self._left), self._end)
        self._timer.daemon = True
        self._timer.start()

    def _end(self) -> None:
        with self._lock:
            self.passed = True
            for connection in self._watched:
                with contextlib.suppress(OSError):  # it has ended by itself
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Watch no longer."""
        self._timer.cancel()
        with self._lock:
            for connection in self._watched:
                connection.close()
            self._watched.clear()


class _Connection(http.client.HTTPConnection):
    """Watched from its first byte on, which may go to a proxy that is asked to lead on."""

    deadline: _Deadline
    _socket: socket.socket | None = None

    @property
    def sock(self) -> Any:
        """The connection; `http.client` sets it before it asks a proxy, and once more for TLS."""
        return self._socket

    @sock.setter
    def sock(self, connection: socket.socket | None) -> None:
        self._socket = connection
        if connection is not None and not isinstance(connection, ssl.SSLSocket):
            self.deadline.watch(connection)


class _SecureConnection(http.client.HTTPSConnection, _Connection):
    """Watched from before the handshake."""


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def __init__(self, deadline: _Deadline) -> None:
        urllib.request.HTTPHandler.__init__(self)
        urllib.request.HTTPSHandler.__init__(self)
        self._deadline = deadline

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self._watched(_Connection, request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self._watched(_SecureConnection, request)

    def _watched(
        self, kind: type[_Connection], request: urllib.request.Request
    ) -> http.client.HTTPResponse:
        def connection(host: str, **options: Any) -> _Connection:
            made = kind(host, **options)
            made.deadline = self._deadline
            return made

        return self.do_open(connection, request)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Another place on the same server is told user and password too, another server never is."""

    def redirect_request(self, req: urllib.request.Request, fp: Any, *told: Any) -> Any:
        new = super().redirect_request(req, fp, *told)
        fp.close()  # else all that the server sends with it would be read, whatever its length
        known = req.get_header("Authorization")
        if new and known and _server(new) == _server(req):
            new.add_unredirected_header("Authorization", known)
        return new


def _server(request: urllib.request.Request) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(request.full_url)  # its `host` may be that of a proxy
    return parts.scheme, parts.netloc.lower()


def fetch(address: str) -> BinaryIO:
    """An image from the web; user and password in its address are sent as Basic authentication.

    Raises:
        ImageError: it cannot be had.
    """
    deadline = _Deadline(DEADLINE_SEC)
    try:
        return _fetched(address, deadline)
    except urllib.error.HTTPError as error:
        error.close()
        loops = "redirects without end" if "infinite loop" in str(error.msg) else error.reason
        raise ImageError(f"the server answered {error.code}: {loops}") from None
    except (http.client.HTTPException, OSError, ValueError, OverflowError) as error:
        if deadline.passed:
            raise ImageError(f"not complete after {DEADLINE_SEC:.0f} s") from None
        cause = getattr(error, "reason", error)
        if isinstance(cause, TimeoutError):
            raise ImageError(f"no answer within {TIMEOUT_SEC:.0f} s") from None
        raise ImageError(f"cannot be downloaded: {cause or type(cause).__name__}") from None
    finally:
        deadline.close()


def _fetched(address: str, deadline: _Deadline) -> BinaryIO:
    # Not urlopen, which also opens file: and ftp: addresses that a server redirects to.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Handler(deadline),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    parts = urllib.parse.urlsplit(quoted(address))
    user, at, host = parts.netloc.rpartition("@")
    agent = {"User-Agent": f"cvt-cli/{__version__}"}
    request = urllib.request.Request(parts._replace(netloc=host).geturl(), headers=agent)
    if at:
        said = urllib.parse.unquote_to_bytes(user if ":" in user else f"{user}:")
        basic = f"Basic {base64.b64encode(said).decode()}"
        request.add_unredirected_header("Authorization", basic)
    with opener.open(request, timeout=TIMEOUT_SEC) as response:
        length = response.headers.get("Content-Length") or ""
        announced = int(length) if length.isdecimal() else None
        if announced is not None and announced > limits.LARGEST_FILE:
            raise decode.too_large()
        content = decode.Content()
        try:
            while chunk := response.read1(_CHUNK):
                content.write(chunk)
                if content.tell() > limits.LARGEST_FILE:
                    raise decode.too_large()
                if content.share is None and (announced or content.tell() > UNCOUNTED):
                    deadline.pause()
                    content.share = limits.contents.take(announced or limits.LARGEST_FILE)
                    deadline.go_on()
                if deadline.passed:
                    break
            if deadline.passed:
                raise TimeoutError
            if announced is not None and content.tell() != announced:
                raise ImageError(f"ended after {content.tell():,} of {announced:,} bytes")
        except BaseException:
            content.close()
            raise
        content.seek(0)
        return content
