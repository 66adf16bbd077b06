"""Pictures and groups that lie in two parts of a set, which makes its measurement too good."""

from collections.abc import Sequence
from dataclasses import dataclass

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


def _groups(one: Part, other: Part) -> str:
    shared = sorted(one.images.named_groups & other.images.named_groups)
    if not shared:
        return ""
    named = some(f"`{name}`" for name in shared)
    return f"`{one.name}` and `{other.name}` share {counted(len(shared), 'group')}: {named}"


class _Pictures:
    """Finds the same picture in two parts, by its pixels where they were decoded.

    A JPEG was decoded at an eighth of its size, which differs from the whole of the same picture in
    another format: where there are others, the JPEGs are decoded again.
    """

    def __init__(self, parts: Sequence[Part], workers: int) -> None:
        self._workers = workers
        every = [seen for part in parts for seen in part.seen if seen is not None]
        self._mixed = len({seen.reduced for seen in every}) > 1
        self._keys = {part.name: self._all_of(part) for part in parts}

    def _all_of(self, part: Part) -> dict[bytes, int]:
        """The first image with each key."""
        found: dict[bytes, int] = {}
        again = []
        for index, seen in enumerate(part.seen):
            if seen is not None and seen.reduced and self._mixed:
                again.append(index)
            elif seen is not None:
                found.setdefault(seen.key, index)
        for index, key in ahead(lambda i: _whole(part.images, i), again, self._workers, 64):
            if key is not None:
                found.setdefault(key, index)
        return found

    def of(self, one: Part, other: Part) -> str:
        """A sentence about the pictures that two parts share; empty if they share none."""
        first, second = self._keys[one.name], self._keys[other.name]
        shared = [(first[key], second[key]) for key in first if key in second]
        reduced = [seen is not None and seen.reduced for seen in one.seen]
        if not self._mixed and any(reduced):  # alike at an eighth of their size
            shared = [
                (a, b)
                for a, b in shared
                if not reduced[a] or _whole(one.images, a) == _whole(other.images, b)
            ]
        if not shared:
            return ""
        a, b = min(shared)
        return (
            f"`{one.name}` and `{other.name}` share {counted(len(shared), 'picture')}, such as "
            f"`{one.images.names[a]}` and `{other.images.names[b]}`"
        )


def _whole(images: LabelledImages, index: int) -> bytes | None:
    """The key of all of a picture's pixels; None where it cannot be read."""
    try:
        return pixels_key(images.load(index, exif=False))
    except ImageError:
        return None
