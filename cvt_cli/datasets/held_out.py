"""What the run that a checkpoint came of trained on, and what it set aside to choose by."""

import base64
import functools
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import files, places, text
from cvt_cli.base.errors import CvtError, DataError
from cvt_cli.base.progress import Say
from cvt_cli.base.text import counted
from cvt_cli.checkpoints.checkpoint import Checkpoint
from cvt_cli.datasets import datacheck, layouts
from cvt_cli.datasets.classes import match_classes
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.datasets.table_sets import Told
from cvt_cli.images import finding
from cvt_cli.images.trees import Folder
from cvt_cli.spec.labels import Labels

_LOOKED_AT = 2000
"""Images of which one must have been trained on, or no other is looked at."""

_LOOKED_AT_AFAR = 200
"""Likewise of images that are on other machines, since each is fetched once more for it."""


_LOOKED_AT_FOR_NAMES = 20
"""Likewise of images that have the names and the place of those that were trained on."""


@dataclass(frozen=True)
class Origin:
    """The run in whose folder a checkpoint lies."""

    run: Path
    data: str  # as it was named
    root: Path  # of the images that were trained on
    validation: frozenset[str]  # names of the images that the best epoch was chosen by
    set_aside: bool  # they were taken from the training images
    unreadable: tuple[str, ...]  # left out: "name: reason"
    n: int  # images that were trained on, and those set aside from them
    fingerprint: str  # of all of these, and of those that could not be read
    chosen_from: tuple[Path, int, str]  # root, n, fingerprint of what holds `validation`
    fold: frozenset[str] = frozenset()  # names of the images that another fold trains on
    table: Path | None = None  # that names the images
    contents: tuple[tuple[str, str | None], ...] = ()  # of `validation`, with their names
    trained: NDArray[np.uint64] | None = None  # contents of the images that were trained on
    before: NDArray[np.uint64] | None = None  # of those that the run's start was trained on
    told: Told = Told()  # noqa: RUF009  # how the table is read; it is frozen

    def trained_on(
        self, images: LabelledImages, opened: Callable[[], LabelledImages], say: Say
    ) -> list[str] | None:
        """Names of those images that were trained on, also by what the run started from; None where
        they are of other data.

        Where the data were moved, renamed or packed since, it is by their contents that they are
        known.

        Args:
            images: to be judged.
            opened: opens the training part of the same data.
            say: told where these have more images now, of which the run does not say which, or
                other ones under their names.
        """
        own = self._in_the_run(images, opened, say)
        if own and self._are_replaced(images, set(own)):
            say(
                f"no image in `{images.root}` that was looked at is as `{self.run}` trained on it; "
                "unless these are the same pictures, saved anew, they were not trained on"
            )
            own = None
        found = [own, _known(images, self.before)]
        if own is None:
            found.append(_known(images, self.trained))
        elif self.trained is not None and len(images) <= datacheck.READ_UP_TO:
            # Copies of them among the others, which have names of their own.
            of_run = set(own)
            rest = [place for place, name in enumerate(images.names) if name not in of_run]
            found.append(_known(images.subset(np.array(rest, np.int64)), self.trained))
        if all(names is None for names in found):
            return None
        known = {name for names in found for name in names or ()}
        return [name for name in images.names if name in known]

    def _in_the_run(
        self, images: LabelledImages, opened: Callable[[], LabelledImages], say: Say
    ) -> list[str] | None:
        """Of `trained_on`, those of this run by their places; None where it trained on others."""
        left_out = {entry[: i + 1] for entry in self.unreadable for i in _before_colons(entry)}
        if self.set_aside:
            left_out |= self.validation | self.fold
        of_its_kind = images.table is not None or self.table is None
        if _same(images.root, self.root) and self._is_named(images) and of_its_kind:
            # The table as the run read it, whatever is told of its columns now.
            own = None if self.table is None else self._training()
            known = set((own or opened()).names)
            self._tell_more(len(known), say)
        elif self._are(images, self.n, self.fingerprint):
            known = set(images.names)
        elif (places := self._places_below(images)) is not None:
            own = self._training()
            if own is None:
                return None
            self._tell_more(len(own), say)
            whole = zip(own.names, _places(own), strict=True)
            trained = {place for name, place in whole if name not in left_out}
            found = [n for n, place in zip(images.names, places, strict=True) if place in trained]
            return found or None
        else:
            return None
        known -= left_out
        return [name for name in images.names if name in known]

    def _are_replaced(self, images: LabelledImages, names: set[str]) -> bool:
        """Whether of the images of these names, evenly spread, none has a file as trained on."""
        if self.trained is None:
            return False
        of_names = images.subset(np.array([i for i, n in enumerate(images.names) if n in names]))
        some = of_names.subset(of_names.evenly(_LOOKED_AT_FOR_NAMES))
        return not np.isin(_contents(some), self.trained).any()

    def _tell_more(self, count: int, say: Say) -> None:
        """Say so if the run's training images are more than they were."""
        if (more := count - self.n - len(self.unreadable)) > 0:
            say(
                f"`{self.root}` has {counted(more, 'image')} more than when `{self.run}` "
                "began; they count as trained on, since the run does not say which they are"
            )

    def _places_below(self, images: LabelledImages) -> list[str] | None:
        """Where images of another table, or of a folder where the run had a table, lie; None if
        none of them is in the run's folder."""
        if len(images) > datacheck.READ_UP_TO or images.pixels is not None:
            return None
        if not isinstance(images.tree or Folder(images.root), Folder):
            return None
        own = str(self.root.resolve()) + os.sep
        places = list(_places(images))
        return places if any(place.startswith(own) for place in places) else None

    def _training(self) -> LabelledImages | None:
        """The images that the run trained on and set aside, as they are there now; None if they
        are not."""
        told = Told() if self.table is None else replace(self.told, images=self.root)
        try:
            return layouts.open_dataset(str(self.table or self.root), "train", self.root, told=told)
        except CvtError:
            return None

    def _is_named(self, images: LabelledImages) -> bool:
        """Whether images of the run's folder are its data: several tables may lie in one folder."""
        if images.table is None:
            return True
        if self.table is None:  # of a run that does not say where its table lies
            return images.table.table.name == Path(self.data).name
        return _same(images.table.table, self.table)

    def _are(self, images: LabelledImages, n: int, fingerprint: str) -> bool:
        """Whether these are images that training began with; other numbers need no reading."""
        return (
            0 <= len(images) - n <= len(self.unreadable)
            and datacheck.fingerprint(images, images.readers) == fingerprint
        )

    def held_out(self, images: LabelledImages, say: Say) -> LabelledImages:
        """Those images that the run chose its best epoch by.

        Args:
            images: that they are looked for among, by name.
            say: told where these are not known as the run's.

        Raises:
            DataError: they are not all among these.
        """
        root, n, fingerprint = self.chosen_from
        known = _same(images.root, root) and self._is_named(images)
        if not known and not self._are(images, n, fingerprint):
            say(
                f"`{images.root}` is not the data of `{self.run}` by its path or its contents; "
                "the images that the run held out are found by their names"
            )
        found = [i for i, name in enumerate(images.names) if name in self.validation]
        if len(found) < len(self.validation):
            raise DataError(
                f"{len(self.validation) - len(found)} of the {len(self.validation)} images that "
                f"`{self.run}` held out are not in `{images.root}`",
                hint=f"name the data that the run was trained on: --data {shlex.quote(self.data)}",
            )
        chosen = images.subset(np.array(found, np.int64))
        self._tell_changed(chosen, say)
        return chosen

    def chosen_by(self, images: LabelledImages) -> int | None:
        """How many of these images the best epoch was chosen by, as they are known by their places
        or their contents; None where they are other images."""
        if _same(images.root, self.chosen_from[0]) and self._is_named(images):
            return sum(name in self.validation for name in images.names)
        kept = [int(content, 16) for _, content in self.contents if content]
        found = _known(images, np.array(kept, np.uint64)) if kept else None
        return None if found is None else len(found)

    def _tell_changed(self, images: LabelledImages, say: Say) -> None:
        """Say how many of the images that were held out have the names and not the contents."""
        before = dict(self.contents)
        if not before:  # of a run of an earlier version, or of more images than are read
            return
        found = datacheck.contents(images, images.readers)
        changed = [n for n, now in zip(images.names, found, strict=True) if before.get(n) != now]
        if changed:
            say(
                f"{len(changed)} of the {counted(len(found), 'image')} that `{self.run}` held out "
                f"have changed since it began, such as `{changed[0]}`: if files were renamed or "
                "replaced, these may be images that it was trained on"
            )


def _contents(images: LabelledImages) -> NDArray[np.uint64]:
    """What tells the images' files (n,) from others; 0 of one that cannot be read."""
    found = datacheck.contents(images, images.readers)
    return np.array([int(content or "0", 16) for content in found], np.uint64)


def _known(images: LabelledImages, kept: NDArray[np.uint64] | None) -> list[str] | None:
    """Names of the images whose files have one of these contents; None where none of some, evenly
    spread, has."""
    if kept is None or not len(images) or len(images) > datacheck.READ_UP_TO:
        return None
    some = images.subset(images.evenly(_LOOKED_AT_AFAR if images.afar else _LOOKED_AT))
    for part in (some, images):
        known = np.isin(_contents(part), kept)
        names = [name for name, is_known in zip(part.names, known, strict=True) if is_known]
        if not names or len(part) == len(images):
            break
    return names or None


def trained_on_by(checkpoint: Checkpoint) -> NDArray[np.uint64] | None:
    """Contents of the images that a checkpoint was trained on, in its run and in those before it;
    None where no run says so."""
    origin = origin_of(checkpoint)
    found = [] if origin is None else [origin.trained, origin.before]
    known = [contents for contents in found if contents is not None]
    return np.unique(np.concatenate(known)) if known else None


def packed(contents: NDArray[np.uint64]) -> str:
    """What tells files' contents, as a run keeps it."""
    return base64.b64encode(np.sort(contents).astype("<u8").tobytes()).decode()


def _unpacked(kept: str | None) -> NDArray[np.uint64] | None:
    """What `packed` made, of a run that kept it; raises ValueError for something else."""
    return None if kept is None else np.frombuffer(base64.b64decode(kept, validate=True), "<u8")


def origin_of(checkpoint: Checkpoint) -> Origin | None:
    """The run that a checkpoint is of: ``RUN/best``, ``RUN/last`` or a file in these, a copy of
    them, also one on the hub, or a file that was exported from them on this machine.

    None where there is no such run, or its plan cannot be read.
    """
    found = _run_of(checkpoint)
    return None if found is None else _origin(*found)


def origin_of_run(folder: Path) -> Origin | None:
    """Likewise of a run, whatever there is of its checkpoints."""
    found = _run_at(folder)
    return None if found is None else _origin(*found)


def _origin(run: Path, split: dict[str, Any], plan: dict[str, Any]) -> Origin | None:
    try:
        data = plan["data"]
        fold = frozenset(split.get("held_out", ()))
        aside, prints = data["val_set_aside"], data["fingerprint"].split()
        split_at = plan["settings"].get("separator")
        return Origin(
            run,
            data["name"],
            Path(data["root"]),
            frozenset(split["validation"]),
            aside,
            tuple(data["unreadable"]),
            n := data["train_n"] + (data["val_n"] if aside else 0) + len(fold),
            prints[0],
            (Path(split["root"]), n if aside else data["val_n"], prints[-1]),
            fold,
            Path(data["table"]) if data.get("table") else None,
            tuple(zip(split["validation"], split["contents"], strict=True))
            if "contents" in split
            else (),
            _unpacked(split.get("trained_on")),
            _unpacked(split.get("trained_before")),
            Told(plan["settings"].get("columns"), None, None, split_at),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _run_of(checkpoint: Checkpoint) -> tuple[Path, dict[str, Any], dict[str, Any]] | None:
    """The run that a checkpoint is of, what it set aside and its plan; None where that is not known
    or cannot be read."""
    path = checkpoint.path.resolve()
    for run in (path, path.parent, path.parent.parent):
        if finding.is_run(run):
            return _run_at(run)
    try:
        weights = record.weights_sha256 if (record := checkpoint.record) else None
        kept = text.read_json(_kept_at(weights or checkpoint.weights_sha256))
        return Path(kept["run"]), kept["split"], kept["plan"]
    except (CvtError, OSError, ValueError, LookupError, TypeError):
        return None


def _run_at(run: Path) -> tuple[Path, dict[str, Any], dict[str, Any]] | None:
    try:
        return run, text.read_json(run / "split.json"), text.read_json(run / "plan.json")
    except (CvtError, OSError, ValueError):
        return None


def remember(checkpoint: Checkpoint) -> None:
    """Keep, for `origin_of`, what a checkpoint's run was trained on, by the checkpoint's weights.

    They tell a copy, and an exported file says of which it was made, wherever the run is by then.
    """
    if checkpoint.kind in ("repository", "embedded"):
        return
    with suppress(CvtError, OSError, AttributeError):  # it is not known then, as elsewhere
        if (found := _run_of(checkpoint)) is not None:
            run, split, plan = found
            of_plan = {name: plan.get(name) for name in ("data", "settings")}
            kept = {"run": str(run), "split": split, "plan": of_plan}
            files.write_text(_kept_at(checkpoint.weights_sha256), json.dumps(kept) + "\n")


def _kept_at(weights_sha256: str) -> Path:
    if not re.fullmatch("[0-9a-f]{64}", weights_sha256):  # a stranger's file may say anything
        raise ValueError("it is no SHA-256")
    return places.cache_dir() / "runs" / f"{weights_sha256}.json"


def measures(training: LabelledImages, opened: Callable[[], LabelledImages]) -> bool:
    """Whether what `cvt evaluate` would take of the data measures a model that was trained on them:
    images of its classes, none of which it was trained on.

    Args:
        training: all images to train on, those set aside included.
        opened: opens what it takes; raises CvtError where it finds nothing, as in a lone ``train``.
    """
    try:
        images = opened()
        match_classes(images.classes, Labels(training.classes))
    except CvtError:  # a test part without labels is one folder, of a class that there is not
        return False
    return not _same(images.root, training.root) or set(training.names).isdisjoint(images.names)


def _places(images: LabelledImages) -> Iterator[str]:
    """Where images are, however their paths are written and whatever links lead there."""
    folder = functools.cache(os.path.realpath)
    for name in images.names:
        around, base = os.path.split(name)
        yield name if "://" in name else os.path.join(folder(images.root / around), base)


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _before_colons(entry: str) -> list[int]:
    return [i - 1 for i, c in enumerate(entry) if c == ":"]
