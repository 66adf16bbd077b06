"""A run's figures as TensorBoard events (extra ``tensorboard``)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from cvt_cli.base import files
from cvt_cli.base.errors import CvtError


def available() -> bool:
    """Whether events can be written at all."""
    return find_spec("tensorboard") is not None


class Events:
    """Writes scalars into event files; `available` must be true.

    Args:
        folder: of the run's events, made if it does not exist. A run that goes on adds a file to
            those that are there.
        first_step: where the run goes on, 0 for a new one. TensorBoard then forgets what the files
            before say of this step and later ones.

    Raises:
        CvtError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        with self._failures_said():
            self._writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write values by name ("loss/training"); they are in the file when this returns.

        Raises:
            CvtError: they cannot be written.
        """
        with self._failures_said():
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self) -> None:
        """Close the file; never fails, since `add` has told of what could not be written."""
        with suppress(CvtError), self._failures_said():
            self._writer.close()

    @contextmanager
    def _failures_said(self) -> Iterator[None]:
        """Raises CvtError in place of what TensorBoard's file system raises.

        Where TensorFlow is installed TensorBoard writes through it, and it has errors of its own.
        """
        from tensorboard.compat import tf

        try:
            yield
        except OSError as error:
            raise files.unwritable(self._folder, error) from error
        except tf.errors.OpError as error:
            raise files.unwritable(self._folder, OSError(error.message)) from error
