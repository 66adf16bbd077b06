"""Which of the processes of a torchrun this is, and what they tell each other."""

import os
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
        own: anything that can be pickled; the others are this command's own processes.
    """
    if count() == 1:
        return [own]
    from torch import distributed

    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        found: list[Any] = [None] * count()
        distributed.all_gather_object(found, own)
        return found
    finally:
        distributed.destroy_process_group()
