"""This machine: its processors, its memory, whether it has a GPU, which packages are installed."""

import os
import platform
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cvt_cli import torchrun


def threads() -> int:
    """How many processors this process may use; those of a torchrun share a machine's."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, own // torchrun.local_count())


def may_have_gpu() -> bool:
    """Whether torch may find an accelerator here; asked without importing it."""
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return apple or Path("/dev/nvidiactl").exists() or bool(shutil.which("nvidia-smi"))


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those of these packages that are installed."""
    from importlib import metadata

    found = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def peak_memory() -> int:
    """Most memory in bytes that this process has held so far."""
    import resource

    status = Path("/proc/self/status")
    if status.exists():  # Linux counts in getrusage what ran in this process before it was replaced
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
