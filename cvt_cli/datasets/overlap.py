"""Pictures and groups that lie in two parts of a set, which makes its measurement too good."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base.ahead import ahead
from cvt_cli.base.errors import DataError, ImageError
from cvt_cli.base.progress import Say
from cvt_cli.base.text import counted, some
from cvt_cli.datasets.datacheck import Seen, pixels_key
from cvt_cli.datasets.labelled import LabelledImages


@dataclass(frozen=True)
class Part:
    """Images of a part of a set, as the user gives it."""

    name: str  # "train", "val" or "test"
    images: LabelledImages
    seen: Sequence[Seen | None]  # what tells each picture; empty where none was read


def refuse(parts: Sequence[Part], allowed: bool, workers: int, say: Say) -> None:
    """Name what lies in two parts.

    Args:
        parts: of one set.
        allowed: it is only said.
        workers: threads that decode.
        say: told what is allowed.

    Raises:
        DataError: something does, and it is not allowed.
    """
    pairs = [(one, other) for i, one in enumerate(parts) for other in parts[i + 1 :]]
    pictures = _Pictures(parts, workers)
    found = [
        text for one, other in pairs for text in (_groups(one, other), pictures.of(one, other))
    ]
    if not (told := [text for text in found if text]):
        return
    if not allowed:
        raise DataError(
            "; ".join(told),
            hint="what was trained on makes a measurement too good: take these out of one of the "
            "parts, or train all the same with --allow-overlap",
        )
    for text in told:
        say(f"warning: {text} (--allow-overlap)")


_TOO_GOOD = "what is measured on them is too good; take the copies out, or group them (--group-by)"


def _files(images: LabelledImages) -> NDArray[np.uint64] | None:
    """What files (n,) of one content and class share; None where they were not read."""
    if images.contents is None or images.several:
        return images.contents
    return images.contents ^ (images.labels.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def tell_copies(training: LabelledImages, held_out: LabelledImages, say: Say) -> None:
    """Say how many of the images that were set aside have the same file among those to train on."""
    ours, theirs = _files(held_out), _files(training)
    if ours is None or theirs is None:
        return
    copies = np.flatnonzero(np.isin(ours, theirs))
    if not len(copies):
        return
    first = int(copies[0])
    other = int(np.flatnonzero(theirs == ours[first])[0])
    say(
        f"warning: {len(copies)} of the {counted(len(held_out), 'image')} held out are copies of "
        f"images to train on, such as `{held_out.names[first]}` of `{training.names[other]}`: "
        f"{_TOO_GOOD}"
    )


def tell_trained_before(
    held_out: LabelledImages, contents: NDArray[np.uint64], model: str, say: Say
) -> None:
    """Say how many of the images that were set aside the start of a run was trained on."""
    if held_out.contents is None:
        return
    known = np.flatnonzero(np.isin(held_out.contents, contents))
    if len(known):
        say(
            f"warning: `{model}` was trained on {len(known)} of the "
            f"{counted(len(held_out), 'image')} held out, such as "
            f"`{held_out.names[int(known[0])]}`: what is measured on them is too good; start from "
            "a model that has not seen them, or hold out what its run held out"
        )


def tell_two_classes(images: LabelledImages, say: Say) -> None:
    """Say how many images have the same file in another class."""
    if images.contents is None or images.several:
        return
    wrong = np.flatnonzero(_differ(images.contents, images.labels))
    if len(wrong):
        same = np.flatnonzero(images.contents == images.contents[wrong[0]])
        other = next(i for i in same if images.labels[i] != images.labels[wrong[0]])
        say(
            f"warning: {len(wrong)} of {counted(len(images), 'image')} are copies of an image in "
            f"another class, such as `{images.names[int(wrong[0])]}`, "
            f"`{images.classes[images.labels[wrong[0]]]}`, and `{images.names[int(other)]}`, "
            f"`{images.classes[images.labels[other]]}`: one of the two classes is wrong"
        )


def _differ(keys: NDArray[np.uint64], values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whose key (n,) has another value (n,) elsewhere too."""
    of, place = np.unique(keys, return_inverse=True)
    least, most = np.full(len(of), values.max(initial=0)), np.full(len(of), -1)
    np.minimum.at(least, place, values)
    np.maximum.at(most, place, values)
    return np.asarray((least != most)[place])


def tell_copies_in_folds(images: LabelledImages, fold: NDArray[np.int64], say: Say) -> None:
    """Say how many images have the same file in another fold (n,)."""
    if (files := _files(images)) is None:
        return
    if copies := int(_differ(files, fold).sum()):
        say(
            f"warning: {copies} of {counted(len(images), 'image')} have a copy in another fold: "
            f"{_TOO_GOOD}"
        )


def _groups(one: Part, other: Part) -> str:
    shared = sorted(one.images.named_groups & other.images.named_groups)
    if not shared:
        return ""
    named = some(f"`{name}`" for name in shared)
    return f"`{one.name}` and `{other.name}` share {counted(len(shared), 'group')}: {named}"


class _Pictures:
    """Finds the same picture in two parts: by pixels where those of both were decoded, else by the
    files' contents.

    A JPEG was decoded at an eighth of its size, which differs from the whole of the same picture in
    another format: where there are others, the JPEGs are decoded again.
    """

    def __init__(self, parts: Sequence[Part], workers: int) -> None:
        self._workers = workers
        decoded = [s for part in parts for s in part.seen if s is not None and s.pixels is not None]
        self._reduced = {seen.reduced for seen in decoded} == {True}  # so is every picture
        self._keys = {part.name: self._all_of(part) for part in parts}

    def _all_of(self, part: Part) -> dict[bytes, list[int]]:
        """The images with each key, of their pixels."""
        found: dict[bytes, list[int]] = {}
        again = []
        for index, seen in enumerate(part.seen):
            if seen is None or seen.pixels is None:
                continue
            if seen.reduced and not self._reduced:
                again.append(index)
            else:
                found.setdefault(seen.pixels, []).append(index)
        for key, index in self._whole(part, again).items():
            found.setdefault(key, []).append(index)
        return found

    def _whole(self, part: Part, indices: Sequence[int]) -> dict[bytes, int]:
        """The first of some images with each key of all its pixels, of those that can be read."""
        found: dict[bytes, int] = {}
        for index, key in ahead(lambda i: _whole(part.images, i), indices, self._workers, 64):
            if key is not None:
                found.setdefault(key, index)
        return found

    def _shared(self, one: Part, other: Part) -> list[tuple[int, int]]:
        """An image of each for every picture that both have."""
        seen = [s for part in (one, other) for s in part.seen if s is not None]
        if any(s.pixels is None for s in seen):
            return _in_both(_by_content(one), _by_content(other))
        first, second = self._keys[one.name], self._keys[other.name]
        if not self._reduced:
            return [(first[key][0], second[key][0]) for key in first if key in second]
        return [  # those that are alike at an eighth of their size
            pair
            for key in first
            if key in second
            for pair in _in_both(self._whole(one, first[key]), self._whole(other, second[key]))
        ]

    def of(self, one: Part, other: Part) -> str:
        """A sentence about the pictures that two parts share; empty if they share none."""
        if not (shared := self._shared(one, other)):
            return ""
        a, b = min(shared)
        return (
            f"`{one.name}` and `{other.name}` share {counted(len(shared), 'picture')}, such as "
            f"`{one.images.names[a]}` and `{other.images.names[b]}`"
        )


def _by_content(part: Part) -> dict[bytes, int]:
    """The first image of each file's content."""
    found: dict[bytes, int] = {}
    for index, seen in enumerate(part.seen):
        if seen is not None:
            found.setdefault(seen.content, index)
    return found


def _in_both(one: dict[bytes, int], other: dict[bytes, int]) -> list[tuple[int, int]]:
    return [(index, other[key]) for key, index in one.items() if key in other]


def _whole(images: LabelledImages, index: int) -> bytes | None:
    """The key of all of a picture's pixels; None where it cannot be read."""
    try:
        return pixels_key(images.load(index, exif=False))
    except ImageError:
        return None
