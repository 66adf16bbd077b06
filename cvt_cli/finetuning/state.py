"""What a run goes on from: its position, and the file of its tensors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATE_FILE = Path("state", "state.safetensors")


WHOLE_BEST = Path("state", "best")
"""Where the best whole epoch is kept while `best` holds a part of one."""


@dataclass
class Position:
    """What a run has come to, besides its tensors."""

    rows: list[dict[str, Any]]  # an epoch each, as in metrics.csv
    best: int | None = None  # the best one's place among them, from 1
    best_correct: int = -1
    loss_sum: float = 0.0  # over the steps of the epoch under way
    loss_steps: int = 0
    seconds: float = 0.0  # of all parts of the run
    finished: bool = False
