"""This process: which of a torchrun's it is, and what they tell each other."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

PATIENCE = timedelta(days=7)
"""How long a process that is done waits for the others; torchrun ends it if one fails."""


def rank() -> int:
    """The number of this process, from 0; 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def count() -> int:
    """How many there are on all machines together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_count() -> int:
    """How many there are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def own_path(path: Path) -> Path:
    """The file of this process where all were told one name: ``a.jsonl`` is ``a.0-of-2.jsonl``."""
    if count() == 1:
        return path
    return path.with_name(f"{path.stem}.{rank()}-of-{count()}{path.suffix}")


def gather(own: Any) -> list[Any]:
    """What each process has, by rank; waits until all have come this far.

    Args:
        own: anything that JSON can hold; it travels as such, so that nothing is unpickled.
    """
    if count() == 1:
        return [own]
    import torch
    from torch import distributed

    with joined():
        content = torch.tensor(list(json.dumps(own).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(count())]
        distributed.all_gather(sizes, torch.tensor([len(content)]))
        longest = int(max(sizes))
        padded = torch.cat([content, torch.zeros(longest - len(content), dtype=torch.uint8)])
        found = [torch.empty(longest, dtype=torch.uint8) for _ in range(count())]
        distributed.all_gather(found, padded)
        return [
            json.loads(bytes(part[: int(size)].tolist()))
            for part, size in zip(found, sizes, strict=True)
        ]


def largest(number: int) -> int:
    """The largest of what the processes have; all of them must ask."""
    if count() == 1:
        return number
    import torch
    from torch import distributed

    shared = torch.tensor([number])
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return int(shared)


@contextmanager
def joined(device: str = "cpu") -> Iterator[None]:
    """Let the processes talk: over gloo, and between CUDA devices over NCCL.

    Inside another one, or with one process, nothing happens.
    """
    if count() == 1:
        yield
        return
    from torch import distributed

    if distributed.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()
