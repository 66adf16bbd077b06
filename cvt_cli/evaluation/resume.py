"""JSON lines of an evaluation, and beside them what was counted so far, to go on counting."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cvt_cli.base import conditions, files, text
from cvt_cli.base.conditions import Conditions
from cvt_cli.base.errors import UsageError
from cvt_cli.base.progress import Say
from cvt_cli.datasets.several_labels import joined
from cvt_cli.prediction.json_lines import Document, ResumableLines, with_version

SAVE_EVERY_SEC = 5.0
"""Time between two states, which is what a kill can cost."""


class Line(NamedTuple):
    """What a line says of its image."""

    path: str
    label: str  # the right class
    sha256: str | None  # of its file; None if that could not be read, empty if it is not said
    answered: int | None = None  # the likeliest class; None if the image could not be read
    confidence: float = float("nan")  # its probability
    said: tuple[int, ...] = ()  # all that are answered, where there may be several
    scores: tuple[float, ...] = ()  # and the probability of every class
    weight: float | None = None  # how much the image counts; None where the line does not say it


def _of_several(said: dict[str, Any]) -> Line:
    """A line about an image that may have several classes."""
    start = Line(said["path"], joined(said["labels"]), said["sha256"], weight=said.get("weight"))
    if "error" in said:
        return start
    indices = tuple(one["index"] for one in said["predictions"])
    scores = tuple(said["scores"])
    return start._replace(answered=0, confidence=max(scores), said=indices, scores=scores)


def state_of(path: Path) -> Path:
    """Where is what was counted of JSON lines."""
    return path.with_name(path.name + ".state.json")


class Counted(ResumableLines):
    """JSON lines, and beside them ``FILE.state.json``: the counts of the lines that it tells of.

    Lines of images that could not be read are the last, and it tells of none of them: they are cut
    off by who goes on, and the images tried again. What an earlier version counted stays counted.

    Args:
        path: of the lines.
        resume: go on with what is there; else begin anew.
        say: told what `ResumableLines` says; its errors are raised here too.

    Attributes:
        lines: those that are there.
        counted: what was counted of them; None where the file is new.
        truth: hashes of what the images were judged by; None if unknown.
        trained_on: how many of all images the model was trained on; None if unknown.
    """

    def __init__(self, path: Path, resume: bool, say: Say) -> None:
        self.lines: list[Line] = []
        self.counted: dict[str, Any] | None = None
        self.truth: dict[str, str] | None = None
        self.trained_on: int | None = None
        self._state_path = state_of(path)
        self._conditions = Conditions({})
        self._resume = resume
        self._saved = time.monotonic()
        self.kept = 0  # images of which the last state tells
        self._end, self._written = 0, 0
        super().__init__(path, f"writing predictions to `{path}`", say, self._read)

    def _read(self) -> None:
        """Note what is done, and where the lines begin that were not counted."""
        if not (self._resume and self.path.stat().st_size):
            files.refuse_replaced(self.path)
            self._state_path.unlink(missing_ok=True)
            self.cut(0)
            return
        try:
            self._end = self._read_state(text.read_json(self._state_path))
        except FileNotFoundError:
            raise UsageError(
                f"`{self.path}` exists, but not `{self._state_path}`, which says how it was made",
                hint="name another file, or move this one away",
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.unfit(error) from None
        for known in self.lines:
            self.refuse_other_shares(known.path)

    def _read_state(self, state: Any) -> int:
        """Note what a state and the lines that it tells of say; where the last of these ends."""
        noted = state.pop("sha256", None)
        self.made, self.counted = dict(state["conditions"]), state["counted"]
        # Version 0.1 noted no hash, and no version among the conditions.
        if noted != conditions.json_hash(state) and (noted or "version" in self.made):
            raise ValueError("it is damaged")
        self.truth = state.get("truth")
        end = 0
        with self.path.open("rb") as file:
            while end < state["bytes"] and (line := file.readline()):
                end += len(line)
                said = json.loads(line)
                if "labels" in said:
                    self.lines.append(_of_several(said))
                    continue
                best = said["predictions"][0] if "error" not in said else {}
                self.lines.append(
                    Line(
                        *(said["path"], said["label"], said.get("sha256", "")),
                        *(best.get("index"), best.get("score", float("nan"))),
                        weight=said.get("weight"),
                    )
                )
        if end != state["bytes"] or len(self.lines) != state["done"]:
            raise ValueError(f"it is of {state['done']} images, {len(self.lines)} have a line")
        return end

    def unfit(self, error: Exception) -> UsageError:
        """What to tell the user of a state that cannot be gone on from."""
        return UsageError(
            f"`{self._state_path}` does not fit `{self.path}`: {error}",
            hint="name another file, or start over: --predictions with --overwrite",
        )

    def begin(self, wanted: Conditions) -> None:
        """Go on under these conditions, which the next `save` notes.

        Raises:
            UsageError: what is there was made under others.
        """
        self.are_noted(wanted)
        self._conditions = with_version(wanted)

    def cut_uncounted(self) -> None:
        """Cut off the lines that were not counted; called once nothing is refused any more."""
        self.cut(self._end)

    def write(self, item: Document, sha256: str | None) -> None:
        """Append one line."""
        super().write(item, sha256)
        self._written += 1

    def save(
        self, counted: Callable[[], Any], truth: Mapping[str, str], at_once: bool = False
    ) -> None:
        """Note what was counted of all lines, unless that was noted a moment ago."""
        if not at_once and time.monotonic() - self._saved < SAVE_EVERY_SEC:
            return
        if (size := self.on_disk()) is None:  # a device or a pipe is not gone on with
            return
        state = {
            "conditions": self._conditions.values,
            "done": len(self.lines) + self._written,
            "bytes": size,
            "counted": counted(),
            "truth": truth,
            "n_trained_on": self.trained_on,
        }
        self._write_state(state)
        self.kept = len(self.lines) + self._written
        self._saved = time.monotonic()

    def finish(self) -> None:
        """Note how long the file is with the lines of the images that could not be read, which were
        written since the last `save`: so it is known that the state is of this file."""
        if (size := self.on_disk()) is None:
            return
        state = text.read_json(self._state_path)
        if size != state["bytes"]:
            self._write_state({**state, "whole_bytes": size})

    def _write_state(self, state: dict[str, Any]) -> None:
        state.pop("sha256", None)
        files.write_text(
            self._state_path, json.dumps({**state, "sha256": conditions.json_hash(state)})
        )
