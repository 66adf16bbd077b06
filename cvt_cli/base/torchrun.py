"""This process: which of a torchrun's it is, and what they tell each other."""

import atexit
import functools
import itertools
import json
import os
import platform
import re
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from cvt_cli.base import streams
from cvt_cli.base.errors import CvtError, UsageError
from cvt_cli.base.text import counted

PATIENCE = timedelta(days=7)
"""How long a process that is done waits for the others; torchrun ends it if one fails."""


# What torchrun tells each process; LOCAL_ is of this machine.
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_MEETING_POINT = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class _Place:
    """Of this process among all of a torchrun."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1


def _place() -> _Place:
    """What torchrun says, whole; a single process where it says nothing.

    Raises:
        UsageError: a part of it is missing or cannot be, as where another tool sets ``RANK`` alone:
            work would be shared out that nobody else does.
    """
    given = {name: value for name in _NUMBERS if (value := os.environ.get(name))}
    if not given:
        return _Place()
    lacking = [name for name in (*_NUMBERS, *_MEETING_POINT) if not os.environ.get(name)]
    numbers = [int(value) if value.isdecimal() else -1 for value in given.values()]
    if all(given.get(name, "1") == "1" for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")) and all(
        given.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK")
    ):
        return _Place()  # one process, whoever says so
    if not lacking:
        port = os.environ["MASTER_PORT"]
        if not (port.isdecimal() and 0 < int(port[:9]) < 1 << 16):
            raise UsageError(
                f"MASTER_PORT is `{port}`; it must be a number from 1 to 65535", hint=_hint(given)
            )
        place = _Place(*numbers)
        if (
            0 <= place.local_rank < place.local_count <= place.count
            and 0 <= place.rank < place.count
        ):
            return place
    said = ", ".join(f"{name}={value}" for name, value in given.items())
    raise UsageError(
        f"the environment has {said}"
        + (f" without {' and '.join(lacking)}" if lacking else ", which contradict each other")
        + "; each of several processes needs everything that torchrun sets",
        hint=_hint(given),
    )


def _hint(given: Iterable[str]) -> str:
    return (
        f"start the command with `torchrun -m cvt_cli ...`, or `unset {' '.join(given)}` to run it "
        "in one process"
    )


def rank() -> int:
    """The number of this process, from 0; 0 without torchrun. Raises UsageError as `_place`."""
    return _place().rank


def count() -> int:
    """How many there are on all machines together; 1 without torchrun. Raises likewise."""
    return _place().count


def local_rank() -> int:
    """The number of this process among those of its machine. Raises likewise."""
    return _place().local_rank


def local_count() -> int:
    """How many there are on this machine. Raises likewise."""
    return _place().local_count


def started_by() -> dict[str, Any] | None:
    """Which torchrun started this process, and how often it had to before; None without one.

    Jobs may share the name that torchrun is told, so that it is known by its process as well.
    """
    name, restarts = (os.environ.get(f"TORCHELASTIC_{of}") for of in ("RUN_ID", "RESTART_COUNT"))
    if name is None or restarts is None or not restarts.isdecimal():
        return None
    job = [name, platform.node(), os.getppid()]
    return {"job": job, "restarts": int(restarts)}


def of_all(hardware: str) -> str:
    """What computes in all of them: "1 thread", and "2 processes, each 1 thread"."""
    return hardware if count() == 1 else f"{count()} processes, each {hardware}"


def refuse(what: str) -> None:
    """Raises UsageError for work that one process does, if several have been started for it."""
    if count() > 1:
        raise UsageError(
            f"{what} runs in one process, not in the {count()} of torchrun",
            hint="start it without torchrun",
        )


def is_mine(name: str) -> bool:
    """Whether this process does the work on an item of this name.

    It goes by the name alone, so that a run that is gone on with after items were added gives each
    of the others to the same process as before. Items of one name go to one process.
    """
    return zlib.crc32(os.fsencode(name)) % count() == rank()


def own_path(path: Path) -> Path:
    """The file of this process where all were told one name: ``a.jsonl`` is ``a.0-of-2.jsonl``."""
    if count() == 1:
        return path
    return path.with_name(f"{path.stem}.{rank()}-of-{count()}{path.suffix}")


def refuse_another_count(path: Path) -> None:
    """Raises UsageError where a file of this name is to be gone on with that another number of
    processes wrote, and not this one: all that they did would be done again."""
    if os.path.exists(own_path(path)):
        return
    of_any = re.compile(re.escape(path.stem) + r"(?:\.\d+-of-(\d+))?" + re.escape(path.suffix))
    found: dict[int, Path] = {}
    with suppress(OSError):
        for other in sorted(path.parent.iterdir()):
            if (match := of_any.fullmatch(other.name)) and other.stat().st_size:
                found.setdefault(int(match[1] or 1), other)
    if found and count() not in found:
        before, other = found.popitem()
        how = f"with `torchrun --nproc-per-node {before}`" if before > 1 else "without torchrun"
        raise UsageError(
            f"`{other}` is of {counted(before, 'process')}, and this run has {count()}: what that "
            "has done would be done again",
            hint=f"go on as it was begun, {how}, or name another file",
        )


def gather(own: Any) -> list[Any]:
    """What each process has, by rank; waits until all have come this far.

    Args:
        own: anything that JSON can hold; it travels as such, so that nothing is unpickled.
    """
    if count() == 1:
        return [own]
    return [json.loads(part) for part in gather_bytes(json.dumps(own).encode())]


def gather_bytes(own: bytes) -> list[bytes]:
    """The bytes of each process, by rank; waits until all have come this far."""
    if count() == 1:
        return [own]
    import torch
    from torch import distributed

    with joined("the end"), others_watched():
        content = torch.frombuffer(bytearray(own or b"\0"), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(count())]
        distributed.all_gather(sizes, torch.tensor([len(own)]), group())
        longest = max(int(max(sizes)), 1)
        padded = torch.cat([content, torch.zeros(longest - len(content), dtype=torch.uint8)])
        found = [torch.empty(longest, dtype=torch.uint8) for _ in range(count())]
        distributed.all_gather(found, padded, group())
        return [
            part[: int(size)].numpy().tobytes() for part, size in zip(found, sizes, strict=True)
        ]


def largest(number: int) -> int:
    """The largest of what the processes have; all of them must ask."""
    if count() == 1:
        return number
    import torch
    from torch import distributed

    shared = torch.tensor([number])
    with others_watched():
        distributed.all_reduce(shared, distributed.ReduceOp.MAX, group())
    return int(shared)


_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""In what torch says where another process has ended."""


@contextmanager
def others_watched() -> Iterator[None]:
    """Raises CvtError in place of torch's error, which may come anywhere, if another is gone."""
    try:
        yield
    except RuntimeError as error:
        if count() == 1 or not any(words in str(error) for words in _LOST):
            raise
        raise CvtError(
            f"process {rank()} has nobody to go on with: another of the {count()} has ended"
        ) from None


_LOOK = 0.02
"""Seconds between two looks at who has come."""

_SILENCE = 30.0
"""Seconds after which a process that waits for others says so."""

_SAME_ORDER = "all processes of a torchrun must call the same in the same order"

_meetings = itertools.count(1)
_store: Any = None  # of this process, once it has met others


def _whole_store(patience: timedelta) -> Any:
    """What all processes can read and write.

    It is kept as long as the process, since where torchrun has none, it is process 0 that holds it,
    and others may be still on their way. Processes that torchrun starts again on one machine know
    how often; on several, each of these has its own count.
    """
    global _store
    from torch.distributed import (  # type: ignore[attr-defined]
        PrefixStore,
        rendezvous,
    )

    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT") if local_count() == count() else None
    if _store is None:
        _store, _, _ = next(rendezvous("env://", timeout=patience))
        _store.set_timeout(PATIENCE)
        _will_say(os.getpid())
    return PrefixStore(f"cvt/{restarts}", _store)


def _store_of_a_meeting(for_: str) -> Any:
    """Where the processes find each other's addresses, once all of them have come.

    Torch keeps them under the same names every time: a second meeting would find addresses of the
    first, at which nobody is any more.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    whole = _whole_store(PATIENCE)
    own = PrefixStore(f"{next(_meetings)}", whole)
    own.set(f"here/{rank()}", for_)
    missing, began, said = list(range(count())), time.monotonic(), False
    while missing := [other for other in missing if not own.check([f"here/{other}"])]:
        for other in missing:
            # Looked at once more: it may have come and ended between the two looks.
            if whole.check([f"ended/{other}"]) and not own.check([f"here/{other}"]):
                raise CvtError(
                    f"process {rank()} has nobody to go on with: process {other} of the {count()} "
                    f"has ended and did not come to {for_}",
                    hint=_SAME_ORDER,
                )
        if not said and time.monotonic() - began > _SILENCE:
            streams.say(
                f"process {rank()} of {count()} waits at {for_} for "
                + f"{' and '.join(map(str, missing))}; {_SAME_ORDER}"
            )
            said = True
        time.sleep(_LOOK)
    for other in range(count()):
        if (theirs := own.get(f"here/{other}").decode()) != for_:
            raise CvtError(
                f"process {rank()} has come to {for_}, and process {other} to {theirs}",
                hint=_SAME_ORDER,
            )
    return own


def will_say_that_it_ends() -> None:
    """To processes that wait for this one, also where it has never met them: in a script that does
    something in one process alone. Who imports nothing that meets does not say so.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return  # it is torchrun that holds the store, so that others find it then
    with suppress(UsageError):
        # What this one starts, as to load images, has its environment, and is not meant.
        own = str(os.getpid())
        if count() > 1 and os.environ.setdefault("CVT_PROCESS_OF_TORCHRUN", own) == own:
            import torch.distributed  # noqa: F401  # it cannot be imported where a process ends

            _will_say(os.getpid())


@functools.cache
def _will_say(process: int) -> None:
    """Once in each process, whether it imports what meets or meets first."""
    atexit.register(_say_that_it_ends, process)


def _say_that_it_ends(process: int) -> None:
    """If this is that process and not a fork of it."""
    if os.getpid() == process:
        with suppress(RuntimeError):  # who holds the store has ended before
            _whole_store(timedelta(seconds=10)).set(f"ended/{rank()}", "1")


_group: Any = None  # in which they talk


def group() -> Any:
    """The process group in which they talk, inside `joined`; it is not always torch's default."""
    return _group


@contextmanager
def joined(for_: str, device: str = "cpu") -> Iterator[None]:
    """Let the processes talk: over gloo, and between CUDA devices over NCCL.

    Inside another one, or with one process, nothing happens. They talk in a group of their own also
    where the calling program has one: that one ends with the call, and so tells those that wait in
    it that the call has failed here.

    Args:
        for_: what they have come to, which must be the same in all.
        device: which tensors they exchange.

    Raises:
        CvtError: another one has ended, or has called something else.
    """
    global _group
    if count() == 1 or _group is not None:
        yield
        return
    from torch import distributed

    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    with streams.results_alone(), others_watched():
        store = _store_of_a_meeting(for_)
        if distributed.is_initialized():
            _group = distributed.new_group(timeout=PATIENCE, backend=backend)
        else:
            distributed.init_process_group(
                backend, timeout=PATIENCE, store=store, rank=rank(), world_size=count()
            )
            _group = distributed.group.WORLD
    try:
        yield
    finally:
        ended, _group = _group, None
        distributed.destroy_process_group(ended)
