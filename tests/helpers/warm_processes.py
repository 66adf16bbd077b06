"""Python processes that start at once: forks of one that has imported torch and all of `cvt_cli`.

Starting torch costs 3 seconds of a core; most tests that need a process of its own (signals, exit
codes, streams, a cache between two of them) do not need these to be spent each time. What runs is
the same command line in a process of its own. A new interpreter is started where that could make a
difference: other threads, another locale, limits.
"""

import atexit
import contextlib
import functools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, Literal

import warm_server

IMPORTS = (
    "numpy", "numpy.ma", "PIL.Image", "PIL.BmpImagePlugin", "PIL.GifImagePlugin",
    "PIL.JpegImagePlugin", "PIL.PngImagePlugin", "PIL.PpmImagePlugin", "torch", "torchvision.io",
    "torchvision.transforms.v2", "onnx", "typer", "pydantic.type_adapter",
    "pydantic.functional_validators", "rich.table", "rich.progress", "cvt_cli.*",
    "safetensors.torch", "jinja2", "yaml", "filelock", "torch.distributed.launcher.api",
    "forked_torchrun",
    # Of training: its curves and its event file.
    "matplotlib.figure", "matplotlib.projections", "matplotlib.backends.backend_agg",
    "tensorboard.compat.proto.event_pb2", "tensorboard.summary.writer.record_writer",
    # Of .pt2 files.
    "torch.export.pt2_archive._package", "torch.export._trace", "torch.fx.experimental.validator",
)  # fmt: skip

# Read when an interpreter or a library starts, so that a fork would not see them change.
_READ_AT_START = (
    "COVERAGE", "CUDA", "KMP_", "LANG", "LC_", "LD_", "MALLOC_", "MKL_", "MPL", "OMP_", "OPENBLAS_",
    "PYTHON", "TORCH_", "TYPER_", "_TYPER",
)  # fmt: skip


class Process:
    """A fork of the server; its methods are those of `subprocess.Popen` in text mode.

    Args:
        request: what the server is asked for.
        files: for standard input, output and error; None gives a pipe.
    """

    def __init__(
        self, request: dict[str, Any], files: tuple[int | None, int | None, int | None]
    ) -> None:
        self.returncode: int | None = None
        self.stdin, given = _pipe(files[0], "w")
        self.stdout, output = _pipe(files[1], "r")
        self.stderr, errors = _pipe(files[2], "r")
        self._status, report = os.pipe()
        self._waiting = threading.Lock()
        theirs = [given, output, errors, report]
        self.pid = _server().fork(request, theirs)
        for number, file in zip(theirs, (*files, None), strict=True):
            if file is None:
                os.close(number)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: it has not ended in ``timeout`` seconds.
        """
        with self._waiting:
            if self.returncode is None:
                with selectors.DefaultSelector() as selector:
                    selector.register(self._status, selectors.EVENT_READ)
                    if not selector.select(timeout):
                        raise subprocess.TimeoutExpired(["python"], timeout or 0)
                told = os.read(self._status, 16)
                os.close(self._status)
                assert told, "the server of warm processes has ended"
                self.returncode = int(told)
            return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it prints, after its end.

        Raises:
            subprocess.TimeoutExpired: it has not ended in ``timeout`` seconds.
        """
        if self.stdin is not None:
            self.stdin.close()
        ends = time.monotonic() + (timeout or 0)
        texts: dict[str, str] = {}
        readers = [
            threading.Thread(target=_read, args=(name, stream, texts), daemon=True)
            for name, stream in (("stdout", self.stdout), ("stderr", self.stderr))
            if stream is not None
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if timeout is None else max(0, ends - time.monotonic()))
        self.wait(None if timeout is None else max(0, ends - time.monotonic()))
        return texts.get("stdout", ""), texts.get("stderr", "")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()


Started = Process | subprocess.Popen[str]
"""What `start` gives."""


def start(
    module: str | None,
    *arguments: object,
    environment: dict[str, str],
    code: str | None = None,
    cwd: Path | None = None,
    stdin: "int | IO[Any]" = 0,
    stdout: int | None = None,
    stderr: int | None = None,
    new_session: bool = False,
    largest_file: int | None = None,
    **options: Any,
) -> Started:
    """Start ``python -m MODULE ARGUMENTS``, or ``python -c CODE ARGUMENTS``.

    Args:
        environment: of the process.
        stdin: a descriptor, a file, or `subprocess.PIPE`.
        stdout: a descriptor; None gives a pipe, as for ``stderr``.
        new_session: make it the leader of a group of processes of its own.
        largest_file: that it can write, in bytes, as if the disk were full after that.
        options: of `subprocess.Popen`; with any a new interpreter is started.
    """
    words = [str(argument) for argument in arguments]
    if options or not _same_start(environment):
        if largest_file is not None:
            options["preexec_fn"] = functools.partial(warm_server.limit_files, largest_file)
        what = ["-m", module] if code is None else ["-c", code]
        return subprocess.Popen(
            [sys.executable, *what, *words],
            env=environment,
            cwd=cwd,
            stdin=stdin,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE if stderr is None else stderr,
            text=True,
            start_new_session=new_session,
            **options,
        )
    request = {"module": module, "code": code, "arguments": words, "environment": environment,
               "cwd": str(cwd or Path.cwd()), "new_session": new_session,
               "largest_file": largest_file}  # fmt: skip
    number = stdin if isinstance(stdin, int) else stdin.fileno()
    return Process(request, (None if number == subprocess.PIPE else number, stdout, stderr))


def _same_start(environment: dict[str, str]) -> bool:
    """Whether all that is read when an interpreter starts is as it is here."""
    here, there = (
        {name: value for name, value in all_of.items()
         if name.startswith(_READ_AT_START) and name != "PYTHONPATH"}
        for all_of in (dict(os.environ), environment)
    )  # fmt: skip
    return here == there


def _pipe(given: int | None, mode: Literal["r", "w"]) -> "tuple[IO[str] | None, int]":
    """Our end, read or written, where nothing was given, and the descriptor for the process."""
    if given is not None:
        return None, given
    read, write = os.pipe()
    ours, theirs = (read, write) if mode == "r" else (write, read)
    return open(ours, mode, encoding="utf-8"), theirs


def _read(name: str, stream: IO[str], texts: dict[str, str]) -> None:
    texts[name] = stream.read()
    stream.close()


class _Server:
    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, warm_server.__file__, str(theirs.fileno()), *IMPORTS],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._one_at_a_time = threading.Lock()
        atexit.register(self.close)

    def fork(self, request: dict[str, Any], descriptors: list[int]) -> int:
        """The PID of a new fork."""
        with self._one_at_a_time:
            socket.send_fds(self._channel, [json.dumps(request).encode()], descriptors)
            return int(self._channel.recv(32))

    def close(self) -> None:
        self._channel.close()
        self._process.wait()


@functools.cache
def _server() -> _Server:
    return _Server()
