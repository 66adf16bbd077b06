"""What TensorBoard shows of a run (extra ``tensorboard``)."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path


def available() -> bool:
    """Whether events can be written."""
    return find_spec("tensorboard") is not None


class Events:
    """Numbers by step, in a folder for TensorBoard.

    Args:
        folder: of the events.
        first_step: events at this step and later, from before the run was interrupted, are not
            shown any more.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Note the values of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what has not been written yet."""
        self._writer.close()
