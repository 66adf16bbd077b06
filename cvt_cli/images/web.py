"""An image from the web, whole and within limits of size and time."""

import base64
import contextlib
import email.utils
import http.client
import math
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from typing import Any, BinaryIO

from cvt_cli.base import ahead, limits
from cvt_cli.base.errors import ImageError
from cvt_cli.base.package import __version__
from cvt_cli.images import decode

TIMEOUT_SEC = 10.0
"""For which a server may be silent."""

DEADLINE_SEC = 60.0
"""For one image, however slowly its bytes come and however often it is asked for."""

PAUSES_SEC = (0.5, 1.0, 2.0, 4.0)
"""After which an image is asked for again, where what went wrong may be right a moment later."""

LAST_TRY_SEC = 30.0
"""After which it is not asked for again, whatever pause the server asks for."""

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


_MOST_GIVEN_UP = 3
_given_up: Counter[str] = Counter()
"""How many images in a row each server did not give, however often it was asked. From
`_MOST_GIVEN_UP` on it is asked once for each, until it gives one: of a long list each would be
waited for."""

_FOR_A_MOMENT = frozenset((429, 500, 502, 503, 504))
"""Statuses of a server that has too much to do, or that is being started."""


class _EndedEarly(ImageError):
    """A connection ended before all of an image had come."""


_BROKEN_OFF = (
    _EndedEarly,
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
    ssl.SSLEOFError,
    http.client.IncompleteRead,
)
"""Not the errors of a server that is not there at all: of a long list, each would be waited for."""


class _Deadline:
    """Ends the connections that it watches when the time is up, whatever they wait for."""

    def __init__(self, seconds: float) -> None:
        self._over = threading.Event()
        self._left = seconds
        self._lock = threading.Lock()
        self._watched: list[socket.socket] = []
        self.go_on()

    @property
    def passed(self) -> bool:
        return self._over.is_set()

    def wait(self, seconds: float) -> None:
        """Let so much time pass, unless it is up before."""
        self._over.wait(seconds)

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
        self._timer = threading.Timer(max(0.0, self._left), self.end)
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """The time is up."""
        with self._lock:
            self._over.set()
            for connection in self._watched:
                with contextlib.suppress(OSError):  # it has ended by itself
                    connection.shutdown(socket.SHUT_RDWR)

    def let_go(self) -> None:
        """Watch the connections until now no longer."""
        with self._lock:
            for connection in self._watched:
                connection.close()
            self._watched.clear()

    def close(self) -> None:
        """Watch no longer."""
        self._timer.cancel()
        self.let_go()


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

    Where a server fails for a moment it is asked again, as often as there are `PAUSES_SEC`; see
    also `_MOST_GIVEN_UP`.

    Raises:
        ImageError: it cannot be had.
    """
    started, deadline, tried = time.monotonic(), _Deadline(DEADLINE_SEC), 0
    server = address.split("/", 3)[2]
    pauses = PAUSES_SEC if _given_up[server] < _MOST_GIVEN_UP else ()
    try:
        with ahead.ended_by(deadline.end):
            for pause in (*pauses, math.inf):
                tried += 1
                try:
                    content = _fetched(address, deadline)
                    _given_up.pop(server, None)
                    return content
                except _ERRORS as error:
                    reason, for_a_moment = _explained(error, deadline)
                    pause = max(pause, _pause_asked_for(error))
                if not for_a_moment or time.monotonic() - started + pause > LAST_TRY_SEC:
                    break
                deadline.let_go()
                deadline.wait(pause)
            if for_a_moment:
                _given_up[server] += 1
            raise ImageError(reason + (f", tried {tried} times" if tried > 1 else ""))
    finally:
        deadline.close()


_ERRORS = (_EndedEarly, http.client.HTTPException, OSError, ValueError, OverflowError)


def _explained(error: Exception, deadline: _Deadline) -> tuple[str, bool]:
    """Why an image cannot be had, and whether that may be otherwise a moment later."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        loops = "redirects without end" if "infinite loop" in str(error.msg) else error.reason
        return f"the server answered {error.code}: {loops}", error.code in _FOR_A_MOMENT
    if deadline.passed:
        return f"not complete after {DEADLINE_SEC:.0f} s", False
    if isinstance(error, _EndedEarly):
        return str(error), True
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT_SEC:.0f} s", True
    broken_off = isinstance(error, _BROKEN_OFF) or isinstance(cause, _BROKEN_OFF)
    return f"cannot be downloaded: {cause or type(cause).__name__}", broken_off


def _pause_asked_for(error: Exception) -> float:
    """Seconds for which a server asks to be left alone, or until when; 0 if it does not."""
    asked = error.headers.get("Retry-After") if isinstance(error, urllib.error.HTTPError) else None
    if not asked or asked.isdecimal():
        return float(asked or 0)
    try:
        return email.utils.parsedate_to_datetime(asked).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0


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
                raise _EndedEarly(f"ended after {content.tell():,} of {announced:,} bytes")
        except BaseException:
            content.close()
            raise
        content.seek(0)
        return content
