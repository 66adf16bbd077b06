"""A run's figures as TensorBoard events (extra ``tensorboard``).

The records are TensorBoard's, the file is ours: TensorBoard's own writer has a thread, whose
failures come late and with a traceback, and writes through TensorFlow where that is installed.
"""

import io
import os
import platform
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cvt_cli.base import files


def available() -> bool:
    """Whether events can be written at all."""
    return find_spec("tensorboard") is not None


_NAME = "events.out.tfevents."


def _after(folder: Path) -> float:
    """The time for a file's name: TensorBoard reads the files in the order of their names, and a
    clock may have been set back since the last one."""
    times = [
        float(found[0])
        for path in folder.glob(f"{_NAME}*")
        if (found := re.match(r"\d{1,11}(\.\d+)?", path.name.removeprefix(_NAME)))
    ]
    return max([time.time(), *(before + 1 for before in times if before >= time.time())])


class Events:
    """Writes scalars into event files; `available` must be true.

    Args:
        folder: of the run's events, made if it does not exist. A run that goes on adds a file to
            those that are there.
        taken: steps that the run has taken, 0 of a new one. TensorBoard then forgets what the files
            before say of later ones.

    Raises:
        CvtError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, taken: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._writer = Event, RecordWriter
        self._folder = folder
        place = f"{platform.node()}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{_NAME}{_after(folder):.6f}.{place}"
            self._file = path.open("xb", buffering=0)
        except OSError as error:
            raise files.unwritable(folder, error) from error
        self._write({"file_version": "brain.Event:2"})
        if taken:
            self._write({"step": taken + 1, "session_log": {"status": "START"}})

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write values by name ("loss/training"); they are in the file when this returns.

        Raises:
            CvtError: they cannot be written.
        """
        for name, value in values.items():
            summary = {"value": [{"tag": name, "simple_value": value}]}
            self._write({"step": step, "summary": summary})

    def close(self) -> None:
        """Close the file; never fails, since `add` has told of what could not be written."""
        with suppress(OSError):
            self._file.close()

    def _write(self, event: Mapping[str, Any]) -> None:
        """Write an event, by the fields of TensorBoard's `Event`."""
        record = io.BytesIO()
        content = self._event(wall_time=time.time(), **event).SerializeToString()
        self._writer(record).write(content)
        try:
            files.write_all(self._file, record.getvalue())
        except OSError as error:
            raise files.unwritable(self._folder, error) from error
