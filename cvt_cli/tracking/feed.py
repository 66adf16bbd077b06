"""The one place that tells a run's figures to the tools that follow it.

Every tool but TensorBoard runs in a process of its own (`worker`), which a thread of its own writes
to: a tool that is slow to import, that stalls or that crashes costs the training nothing, and a
Ctrl-C that is meant for the training does not reach it. What it does not take is dropped, counted
and said at the end.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvt_cli.base import files, machine
from cvt_cli.base.errors import CvtError
from cvt_cli.base.progress import Say
from cvt_cli.tracking import tensorboard, trackers
from cvt_cli.tracking.tensorboard import Events

MOST_WAITING = 10_000
"""Records that wait for a tool; of an epoch there is one, and one for every fifty steps."""

END_SEC = 30.0
"""Within which the tools must have taken what is left, when a run ends."""


class _Process:
    """One tool in a process of its own; none of its methods waits for it but `end`."""

    def __init__(self, name: str, run: Path, begin: Mapping[str, Any]) -> None:
        self.name = name
        self.log = run / trackers.FOLDER / f"{name}.log"
        self.dropped = 0
        self.failed = False
        self._waiting: queue.Queue[bytes | None] = queue.Queue(MOST_WAITING)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*machine.python(), "-m", "cvt_cli.tracking.worker", name],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.put({"begin": begin})
        self._thread = threading.Thread(target=self._write, daemon=True, name=f"track {name}")
        self._thread.start()

    def put(self, record: Mapping[str, Any]) -> None:
        """Let a record wait for the tool; where too many wait already it is dropped."""
        try:
            self._waiting.put_nowait(json.dumps(record).encode() + b"\n")
        except queue.Full:
            self.dropped += 1

    def _write(self) -> None:
        pipe = self.process.stdin
        assert pipe is not None
        try:
            while (line := self._waiting.get()) is not None:
                pipe.write(line)
                pipe.flush()
        except OSError:  # its process has ended
            self.failed = True
        with contextlib.suppress(OSError):
            pipe.close()

    def end(self, record: Mapping[str, Any], until: float) -> str | None:
        """Let it end, by a time of `time.monotonic`; what went wrong, as a phrase."""
        self.put(record)
        try:
            self._waiting.put(None, timeout=max(0.0, until - time.monotonic()))
            code = self.process.wait(max(0.0, until - time.monotonic()))
        except (queue.Full, subprocess.TimeoutExpired):
            self.kill()
            return f"did not take everything within {END_SEC:.0f} s, and was stopped"
        self._emptied()
        if self.failed or code:
            return self.last_words()
        return f"did not take {self.dropped} records" if self.dropped else None

    def kill(self) -> None:
        """End it at once, with whatever the tool has started."""
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)  # it leads a session of its own
            self.process.kill()
        self.process.wait()
        self._emptied()

    def _emptied(self) -> None:
        """Let the thread end, whose pipe nobody reads any more."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
        self._waiting.put(None)
        self._thread.join(1.0)

    def last_words(self) -> str:
        """What its process said last."""
        try:
            lines = self.log.read_text(errors="replace").split("\n")
        except OSError:
            lines = []
        said = [line.strip() for line in lines if line.strip()]
        return f"failed: {said[-1][:200]}" if said else "failed without a word"


class Feed:
    """Tells a run's figures to tools; use as a context, which ends them.

    Args:
        names: of the tools; None for TensorBoard alone, where it is installed.
        run: the run's folder.
        settings: of the run, in JSON values, nested or not.
        taken: steps that the run has taken, 0 of a new one.
        say: told of what fails; the training goes on.
    """

    def __init__(
        self,
        names: tuple[str, ...] | None,
        run: Path,
        settings: Mapping[str, Any],
        taken: int,
        say: Say,
    ) -> None:
        self._say, self._processes, self._said = say, list[_Process](), set[str]()
        self._events: Events | None = None
        self.card: Path | None = None  # that the tools are given at the end
        chosen = trackers.kept(run) if names is None else names
        of_files = ("tensorboard",) if chosen is None and tensorboard.available() else chosen or ()
        if "tensorboard" in of_files:
            try:
                self._events = Events(run / "events", taken)
            except CvtError:
                raise
            except Exception as error:  # its import fails: it has gone, or lacks its own protobuf
                say(f"no events for TensorBoard, and the training goes on: {error}")
        others = [name for name in of_files if name != "tensorboard"]
        if chosen is not None:
            self._keep(run, chosen)
        begin = {"run": str(run.resolve()), "settings": _flat(settings), "goes_on": taken > 0}
        for name in others:
            try:
                self._processes.append(_Process(name, run, begin))
                say(f"tracked by {name}: {trackers.TRACKERS[name].where}")
            except OSError as error:
                say(f"tracking by {name} failed, and the training goes on: {error}")

    def _keep(self, run: Path, names: tuple[str, ...]) -> None:
        """Note which tools a run is followed with, for who goes on with it."""
        folder = run / trackers.FOLDER
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise files.unwritable(folder, error) from error
        files.write_text(folder / trackers.CHOSEN_FILE, json.dumps(list(names)) + "\n")

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        how = "finished" if kind is None else "stopped"
        if kind is not None and not issubclass(kind, KeyboardInterrupt):
            how = "failed"
        self.end(how)

    @property
    def wanted(self) -> bool:
        """Whether anything is told to anybody."""
        return self._events is not None or bool(self._processes)

    def add(self, step: int, values: Mapping[str, float | None]) -> None:
        """Tell values by name; it returns at once, and never fails. Unknown ones are left out."""
        known = {name: value for name, value in values.items() if value is not None}
        if self._events is not None:
            try:
                self._events.add(step, known)
            except CvtError as error:
                self._events.close()
                self._events = None
                self._say(f"TensorBoard's events end here, and the training goes on: {error}")
        for one in self._processes:
            if one.failed or one.process.poll() is not None:
                if one.name not in self._said:
                    self._said.add(one.name)
                    self._say(
                        f"tracking by {one.name} {one.last_words()}; the training goes on "
                        f"(all it said is in `{one.log}`)"
                    )
            else:
                one.put({"step": step, "values": known})

    def end(self, how: str) -> None:
        """End the tools: ``how`` is "finished", "stopped" or "failed"."""
        if self._events is not None:
            self._events.close()
            self._events = None
        until = time.monotonic() + END_SEC
        record = {"finish": how, "card": self.card and str(self.card)}
        try:
            for one in self._processes:
                if (wrong := one.end(record, until)) and one.name not in self._said:
                    self._say(f"tracking by {one.name} {wrong} (all it said is in `{one.log}`)")
        except BaseException:  # as Ctrl-C, by whom does not want to wait
            for one in self._processes:
                if one.process.poll() is None:
                    one.kill()
            raise
        finally:
            self._processes = []


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested values by dotted names; a list is text."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        elif value is not None:
            found[before + name] = value if isinstance(value, int | float | str) else str(value)
    return found
