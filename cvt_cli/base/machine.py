"""This machine: its processors, its memory, whether it has a GPU, which packages are installed."""

import functools
import math
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from cvt_cli.base import torchrun

WORK_OF_A_THREAD = 128_000_000
"""MACs of a call that pay for one more thread: some 5 ms of a core. Below, handing out the parts
costs what their being done side by side saves, and beside a busy process several times as much."""

_MOST_THREADS = 1024
"""That are started, whatever is asked for: a runtime starts them all, or ends in an error."""

_BRIEF_SPINS = "1000"
"""Some 20 us, as most parts of a layer take; libgomp's own choice is milliseconds."""


def python() -> list[str]:
    """How a process of ours starts another one in Python: it looks for modules where this one does.

    Of itself ``python -m`` takes what is called so in the working folder, before all others.
    """
    try:
        looks_here = os.getcwd() in {os.path.realpath(place) for place in sys.path}
    except OSError:  # the working folder has gone
        looks_here = False
    return [sys.executable, *([] if looks_here else ["-P"])]


def processors() -> int:
    """How many processors this process may use; a container's quota is rounded up to them."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    if quota is not None:
        own = min(own, math.ceil(quota))
    return max(1, own)


def threads() -> int:
    """How many of them are this process's own; those of a torchrun share a machine's."""
    return max(1, processors() // torchrun.local_count())


def threads_for(macs: int) -> int:
    """How many threads shall compute a call of so many MACs: no more than pay.

    ``OMP_NUM_THREADS`` decides where it is set. The 1 that torchrun sets for each of several
    processes is not the user's, and is passed over.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked.isascii() and asked.isdecimal() and asked.strip("0"):
        if asked != "1" or torchrun.local_count() == 1:
            return min(int(asked.lstrip("0")[:9]), _MOST_THREADS)
    return max(1, min(threads(), macs // WORK_OF_A_THREAD))


def named_threads(count: int) -> str:
    """As results name what computes: "1 thread", "2 threads"."""
    return f"{count} thread{'' if count == 1 else 's'}"


def wait_briefly() -> None:
    """Let torch's threads wait for each other asleep; to be called before torch is imported.

    By default they spin: where others want the same processors a thread then waits for one that is
    not running, and uses up its own share of the time so, ten times as long as it computes.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _BRIEF_SPINS


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processors' time per time that Linux control groups leave this process; None for all of it.

    Args:
        root: of the file system with ``proc`` and ``sys``.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except (OSError, ValueError):
        return None
    paths = {}  # of this process in each hierarchy, by its controllers; the second version has none
    for line in groups:
        _, controllers, path = line.split(":", 2)
        paths[controllers] = path
    found = []
    for line in mounts:
        (_, _, _, top, point, *_), (kind, _, *options) = (p.split() for p in line.split(" - ", 1))
        if kind == "cgroup2":
            path = paths.get("", "/")
        elif kind == "cgroup" and "cpu" in ",".join(options).split(","):
            path = next((p for c, p in paths.items() if "cpu" in c.split(",")), "/")
        else:
            continue
        # A mount may begin further down; in a container it often shows the group itself.
        parts = PurePosixPath(path).parts[1:]
        inside = PurePosixPath(top).parts[1:]
        parts = parts[len(inside) :] if parts[: len(inside)] == inside else ()
        for depth in range(len(parts) + 1):
            group = root / point.lstrip("/") / Path(*parts[:depth])
            if (quota := _quota_of(group)) is not None:
                found.append(quota)
    return min(found, default=None)


def _quota_of(group: Path) -> float | None:
    """What one control group leaves, of the second version or the first."""
    with suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period) if quota != "max" else None
    with suppress(OSError, ValueError, ZeroDivisionError):
        allowed = int((group / "cpu.cfs_quota_us").read_text())
        if allowed > 0:
            return allowed / int((group / "cpu.cfs_period_us").read_text())
    return None


def processor() -> str:
    """What a program that is made for this processor depends on: its kind and its features."""
    about = platform.machine()
    with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, features = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return f"{about} {' '.join(sorted(features.split()))}"
    return f"{about} {platform.processor()}"


def has(feature: str) -> bool:
    """Whether this processor has a feature, by the system's name for it, such as "amx_bf16"."""
    return feature in processor().split()


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


def version_of(package: str) -> str | None:
    """The version of an installed package; `importlib.metadata` takes tens of milliseconds."""
    spec = find_spec(package)
    name = re.compile(rf"{re.escape(package)}-(.+)\.dist-info", re.IGNORECASE)
    for place in (spec and spec.submodule_search_locations) or ():
        for entry in _entries(Path(place).parent):
            if found := name.fullmatch(entry):
                return found[1]
    return versions([package]).get(package)


@functools.cache
def _entries(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def may_open(files: int) -> bool:
    """Whether this process may hold so many files open; its limit is raised where it may be."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return True
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= files:
        return True
    if hard != resource.RLIM_INFINITY and hard < files:
        return False
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
        return True
    return False


def peak_memory() -> int:
    """Most memory in bytes that this process has held so far."""
    import resource

    status = Path("/proc/self/status")
    if status.exists():  # Linux counts in getrusage what ran in this process before it was replaced
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
