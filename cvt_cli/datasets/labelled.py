"""Labelled images: which files there are, which class each belongs to, and what else is known."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvt_cli.base import machine
from cvt_cli.base.errors import DataError
from cvt_cli.datasets import groups as grouping
from cvt_cli.datasets import several_labels
from cvt_cli.images import decode
from cvt_cli.images.decode import Colour
from cvt_cli.images.packed import Packed
from cvt_cli.images.trees import Folder, Tree
from cvt_cli.spec.config import Size

Split = Literal["train", "test"]


_MOST_NAMED = 10
"""Classes that an error lists."""

_READERS_AFAR = 16
"""Threads at least that fetch images from other machines, for which they wait most of the time."""


class Rows(Protocol):
    """What opens the pictures of a table's rows."""

    @property
    def table(self) -> Path:
        """The table itself."""

    def open(self, name: str, row: int) -> BinaryIO:
        """The file of a picture; raises OSError or ImageError."""

    def size(self, name: str, row: int) -> int | None:
        """Bytes of it; None where that is not known without opening it."""


@dataclass(frozen=True)
class LabelledImages:
    """Images with the class that each belongs to; decoded when asked for."""

    root: Path
    classes: tuple[str, ...]  # names, in the order that `labels` counts
    names: Sequence[str]  # one per image: its path below `root`, or file and position in it
    labels: NDArray[Any]  # (n,) int64 index into `classes`; where `several`, (n, classes) uint8: 1
    #                        where an image has a class
    pixels: NDArray[np.uint8] | None = None  # (n, H, W, 3) where the set is held in memory
    layout: str = "class folders"  # what told the classes, and of what kind of archive, in words
    tree: Tree | None = None  # what `names` are opened in; None is the folder `root`
    table: Rows | None = None  # what opens them instead, where a table names them
    rows: NDArray[np.int32] | None = None  # (n,) of the table, from 0
    groups: NDArray[np.int64] | None = None  # (n,) index into `group_names`: patient, video, …
    group_names: tuple[str, ...] = ()
    grouped_by: str | None = None  # the column or the pattern that tells the groups
    weights: NDArray[np.float64] | None = None  # (n,) how much each counts, above 0
    weighed_by: str | None = None  # the column that tells the weights
    contents: NDArray[np.uint64] | None = None  # (n,) of the files' hashes, where they were read

    def __len__(self) -> int:
        return len(self.names)

    @property
    def several(self) -> bool:
        """Whether an image may have several classes, or none."""
        return self.labels.ndim == 2

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many images each class has (classes,)."""
        if self.several:
            return np.asarray(self.labels.sum(axis=0, dtype=np.int64))
        return np.bincount(self.labels, minlength=len(self.classes))

    @property
    def strata(self) -> NDArray[np.int64]:
        """What images are stratified by (n,): the class, of several the rarest that each has."""
        return several_labels.strata(self.labels) if self.several else self.labels

    def load(
        self,
        index: int,
        exif: bool,
        at_least: Size | None = None,
        background: Colour | None = None,
        tell_hash: Callable[[str], None] | None = None,
    ) -> Image.Image:
        """One image as RGB, as `decode.decode` gives it; may be called from several threads.

        Args:
            index: of the image.
            exif: turn the picture upright as its EXIF orientation says.
            at_least: height and width that a JPEG is decoded to at least; None decodes it whole.
            background: what shows where the picture is transparent.
            tell_hash: told the image's `content_hash`, where it can be read.

        Raises:
            ImageError: it cannot be read.
        """
        if self.pixels is not None:
            if tell_hash is not None:
                tell_hash(self.content_hash(index))
            return Image.fromarray(self.pixels[index])
        opened = self.opener(index)
        if tell_hash is not None:
            opened = decode.hashed(opened, tell_hash)
        return decode.decode(opened, exif, at_least, background)

    def weight(self, index: int) -> float | None:
        """How much one image counts; None where all count the same."""
        return None if self.weights is None else float(self.weights[index])

    def content_hash(self, index: int) -> str:
        """The SHA-256 of an image's file, or of its pixels where these are held in memory.

        Raises:
            ImageError: it cannot be read.
        """
        if self.pixels is not None:
            return hashlib.sha256(self.pixels[index].tobytes()).hexdigest()
        return decode.content_hash(self.opener(index))

    def evenly(self, most: int) -> NDArray[np.int64]:
        """Indices of so many images at most, spread evenly."""
        return np.unique(np.linspace(0, len(self) - 1, most).astype(np.int64))

    @property
    def readers(self) -> int:
        """Threads that read its files: one for each processor, more where they are waited for."""
        return max(machine.threads(), _READERS_AFAR) if self.afar else machine.threads()

    @property
    def afar(self) -> bool:
        """Whether its images, of which some are looked at, lie on other machines."""
        some = (self.names[index] for index in self.evenly(20).tolist())
        return self.pixels is None and any("://" in name for name in some)

    def opener(self, index: int) -> Callable[[], BinaryIO]:
        """What opens an image's file, where the set is not held in memory."""
        name = self.names[index]
        if self.table is not None and self.rows is not None:
            return partial(self.table.open, name, int(self.rows[index]))
        return partial((self.tree or Folder(self.root)).open, name)

    def size(self, index: int) -> int | None:
        """Bytes of an image's file; None where that is not known without opening it."""
        name = self.names[index]
        if self.table is not None and self.rows is not None:
            return self.table.size(name, int(self.rows[index]))
        return (self.tree or Folder(self.root)).size(name)

    def place(self, index: int) -> str:
        """Where an image is, for a message: its path, or the address that it has."""
        return place_of(self.root, self.names[index])

    def subset(self, indices: NDArray[np.int64]) -> "LabelledImages":
        """The images at these positions, with all classes kept."""
        names = self.names
        of_each: dict[str, Any] = {
            field: None if (values := getattr(self, field)) is None else values[indices]
            for field in ("pixels", "rows", "groups", "weights", "contents")
        }
        return replace(
            self,
            names=names.take(indices)
            if isinstance(names, Packed)
            else tuple(names[index] for index in indices),
            labels=self.labels[indices],
            **of_each,
        )

    @property
    def named_groups(self) -> frozenset[str]:
        """The groups that there are images of."""
        if self.groups is None:
            return frozenset()
        return frozenset(self.group_names[group] for group in np.unique(self.groups))

    def refuse_classes_of_less_than(self, least: int, why: str) -> None:
        """Raises DataError with every class that has fewer images; ``why`` follows the number."""
        counts = self.sizes.tolist()
        if few := [(name, n) for name, n in zip(self.classes, counts, strict=True) if n < least]:
            named = ", ".join(f"`{name}` with {n}" for name, n in few[:_MOST_NAMED])
            more = f" and {len(few) - _MOST_NAMED} more" if len(few) > _MOST_NAMED else ""
            place = self.root if self.table is None else self.table.table
            raise DataError(
                f"too few images in `{place}`: "
                f"{'class' if len(few) == 1 else 'classes'} {named}{more}; "
                f"each needs at least {least}{why}"
            )

    def split(self, fraction: float, seed: int) -> tuple["LabelledImages", "LabelledImages"]:
        """Set a part of every class aside, drawn by ``seed``: (the rest, the part set aside).

        Where groups are known, whole ones are, so that classes have about their part of it. Images
        of several classes are drawn by the rarest that each has.

        Raises:
            DataError: a class has fewer than 2 images, or two groups cannot be parted.
            UsageError: there are groups, and scikit-learn is not installed.
        """
        self.refuse_classes_of_less_than(2, ", one to train on and one to choose the best epoch by")
        if self.groups is not None:
            set_aside = grouping.set_aside_of_several if self.several else grouping.set_aside
            aside = set_aside(self.labels, self.groups, fraction, seed)
            if aside is None:
                raise DataError(
                    f"the groups of `{self.root}` cannot be parted: every class lies in one group "
                    "alone, so that whole groups leave nothing to choose the best epoch by"
                )
        else:
            generator = np.random.default_rng(seed)
            aside = np.zeros(len(self), dtype=bool)
            for members in grouping.members_of_each(self.strata, len(self.classes) + self.several):
                count = min(max(1, round(fraction * len(members))), max(0, len(members) - 1))
                aside[generator.permutation(members)[:count]] = True
            if self.several:
                aside = several_labels.on_both_sides(self.labels, aside)
        return self.subset(np.flatnonzero(~aside)), self.subset(np.flatnonzero(aside))


def place_of(root: Path, name: str) -> str:
    """Where an image is, for a message: its path, or the address that it has."""
    return name if "://" in name else str(root / name)


def made(
    tree: Tree, classes: Iterable[str], names: Iterable[str], labels: Iterable[int], layout: str
) -> LabelledImages:
    if tree.kind != "folder":
        layout += f" in a {tree.kind}"
    numbers = np.array(list(labels), dtype=np.int64)
    return LabelledImages(tree.root, tuple(classes), tuple(names), numbers, None, layout, tree)
