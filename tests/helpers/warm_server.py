"""Runs Python command lines in forks of a process that has imported torch: see `warm_processes`.

Started with the number of a Unix socket and the names of modules. A message is one JSON object with
the file descriptors for standard input, output and error, and one more, which the exit status is
written to. Nothing is imported that reads the environment when it is.
"""

import atexit
import contextlib
import gc
import importlib
import importlib.util
import io
import json
import os
import pkgutil
import resource
import runpy
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import types
from typing import Any

MESSAGE_BYTES = 1 << 20


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork for each message; returns its request in the fork, None when no more can come."""
    read, write = os.pipe()
    for end in (read, write):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(write)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, lambda number, frame: None)
    reports: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([channel, read], [], [])
        if read in ready:
            os.read(read, 4096)
            report_ended(reports)
        if channel not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, 4)
        if not message:
            return None
        request = json.loads(message)
        if (pid := os.fork()) == 0:
            signal.set_wakeup_fd(-1)
            for descriptor in (channel.fileno(), read, write, descriptors[3], *reports.values()):
                os.close(descriptor)
            channel.detach()
            become(request, descriptors[:3])
            return request
        reports[pid] = descriptors[3]
        for descriptor in descriptors[:3]:
            os.close(descriptor)
        channel.send(str(pid).encode())


def report_ended(reports: dict[int, int]) -> None:
    """Write the status of each fork that has ended to whoever waits for it."""
    while reports:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        report = reports.pop(pid)
        try:
            os.write(report, str(os.waitstatus_to_exitcode(status)).encode())
        except BrokenPipeError:
            pass  # nobody waits any more
        os.close(report)


def limit_files(size: int) -> None:
    """No file grows beyond so many bytes, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Take the place of a Python that was started with the request's arguments."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(3, 1 << 16)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    if request["new_session"]:
        os.setsid()
    if request["largest_file"] is not None:
        limit_files(request["largest_file"])
    ours = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(request["environment"])
    theirs = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    first = "" if request["code"] is not None else os.getcwd()
    sys.path[:] = [first, *filter(None, theirs), *(p for p in sys.path[1:] if p not in ours)]
    time.tzset()
    tempfile.tempdir = None
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        was = getattr(sys, name)
        stream = open(number, mode + "b", closefd=False)  # noqa: SIM115
        text = io.TextIOWrapper(
            stream,
            was.encoding,
            was.errors,
            newline=None if mode == "r" else "\n",
            line_buffering=number == 2 or os.isatty(number),
        )
        text.mode = mode  # type: ignore[misc]
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)


def leave(status: int) -> None:
    """End as an interpreter does, but for the objects, which it takes apart one by one.

    That touches all pages of what is imported and takes 0.4 seconds, longer than most commands.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):  # else the interpreter says what is wrong
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(status)


def warm_up(names: list[str]) -> None:
    """Import the modules that are installed, and all of each package that ends with ``.*``."""
    for name in names:
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            continue
        package = importlib.import_module(name.removesuffix(".*"))
        if name.endswith(".*"):
            for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
                if not module.name.endswith("__main__"):
                    importlib.import_module(module.name)


def run(request: dict[str, Any]) -> None:
    """Run what was asked for."""
    if request["code"] is None:
        sys.argv = ["-m", *request["arguments"]]
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *request["arguments"]]
        sys.modules["__main__"] = main_module = types.ModuleType("__main__")
        exec(compile(request["code"], "<string>", "exec"), vars(main_module))


def main() -> None:
    warm_up(sys.argv[2:])
    gc.freeze()  # so that forks do not copy the pages of what is imported
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if request is None:
        return
    try:
        run(request)
    except SystemExit as error:
        if not isinstance(error.code, int | None):
            raise
        leave(error.code or 0)
        raise
    leave(0)


if __name__ == "__main__":
    main()
