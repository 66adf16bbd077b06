"""The processes of whole jobs that are timed: run to their end, and ended with this one."""

import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cvt_cli.base.errors import CvtError

_LOOK_SEC = 0.1
"""So often a process's memory is looked at; Linux forgets it with its end."""


@contextmanager
def ended_together() -> Iterator[None]:
    """SIGTERM and a closed terminal end this process as Ctrl-C does: after the side that runs."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {}
    with suppress(ValueError):  # not in the main thread
        for name in ("SIGTERM", "SIGHUP"):
            which = getattr(signal, name, None)  # Windows has no SIGHUP
            if which is not None and signal.getsignal(which) is signal.SIG_DFL:
                before[which] = signal.signal(which, end)
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[float, int]:
    """Run a command to its end: seconds, and its process's peak memory in bytes.

    Raises:
        CvtError: it failed, with what it said last.
    """
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=said,
        )  # fmt: skip
        used = 0
        try:
            while process.poll() is None:
                used = max(used, _peak_memory(process.pid))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_SEC)
        except BaseException:
            process.kill()
            process.wait()
            raise
        took = time.perf_counter() - started
        if process.returncode < 0:
            raise CvtError(
                f"`{shlex.join(command)}` was ended by signal {-process.returncode}, as happens "
                "when memory runs out",
                hint="try a smaller --batch-size or --res",
            )
        if process.returncode:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines() or ["nothing"]
            why = [line for line in lines if line.startswith("error: ")] or lines
            raise CvtError(
                f"`{shlex.join(command)}` ended with exit code {process.returncode}, "
                f"and said: {why[-1].removeprefix('error: ')}"
            )
    return took, used


def _peak_memory(process: int) -> int:
    """Of a running process, in bytes; 0 where Linux does not say it."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
