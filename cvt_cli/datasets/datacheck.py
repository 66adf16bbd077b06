"""Labelled images before anything is trained on them: can all be read, and are they the same?"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvt_cli.base.ahead import ahead
from cvt_cli.base.errors import ImageError
from cvt_cli.base.progress import Progress, silent
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.images import decode
from cvt_cli.images.archives import ARCHIVE_ERRORS
from cvt_cli.images.packed import Packed
from cvt_cli.spec.config import Size

DECODED_UP_TO = 20_000
"""Images; in a larger set the headers alone are decoded."""

READ_UP_TO = 2_000_000
"""Images; in a larger set none is read, which would take hours before training begins."""


class Seen(NamedTuple):
    """What tells a picture from others."""

    content: bytes  # of its file
    pixels: bytes | None  # None where the header alone was decoded
    reduced: bool  # they are a JPEG's at an eighth of its size


@dataclass(frozen=True)
class DataCheck:
    """Which of a set's images can be read, and what tells the set from others."""

    unreadable: tuple[tuple[int, str], ...]  # index of the image and the reason, by index
    only_headers: bool  # damage behind a header was not looked for
    unread: bool  # nor any other
    fingerprint: str  # SHA-256, hexadecimal: another one means other data
    used_fingerprint: str  # likewise of those alone that can be read
    size_fingerprint: str  # one by the files' sizes alone, which earlier versions took
    seen: tuple[Seen | None, ...]  # of each image, where that was asked for and it was read
    # (n,) of the files' hashes, or the pixels'; None where none was read
    contents: NDArray[np.uint64] | None = field(compare=False)


def pixels_key(picture: Image.Image) -> bytes:
    """What pictures of the same pixels share."""
    digest = hashlib.sha256(f"{picture.width} {picture.height} ".encode())
    digest.update(picture.tobytes())
    return digest.digest()[:16]


def check(
    data: LabelledImages, workers: int, progress: Progress = silent, seen: bool = False
) -> DataCheck:
    """Count the images of each class, read each image and take the set's fingerprint.

    Up to `DECODED_UP_TO` images are decoded whole, so that damage anywhere is found; of more only
    the headers are read. Images held in memory need no reading.

    The fingerprint is of the names of classes and images in their order, of the labels and of the
    files' contents, or of the images themselves where they are held in memory. It does not depend
    on where the data lie. So every file is read whole, also where its header alone is decoded. Of
    more than `READ_UP_TO` images no file is read, and the fingerprint is of the rest.

    Args:
        data: at least one class.
        workers: threads that read; they do not change the result.
        progress: told of every image.
        seen: find what tells each picture: its file's content, and its pixels where it is decoded.
    """
    digest = hashlib.sha256(json.dumps(data.classes).encode())
    by_size, of_used = digest.copy(), digest.copy()
    only_headers = data.pixels is None and len(data) > DECODED_UP_TO
    unreadable: list[tuple[int, str]] = []
    unread = data.pixels is None and len(data) > READ_UP_TO

    def look(index: int) -> tuple[str | None, int | None, str | None, Seen | None]:
        if data.pixels is not None:
            key = hashlib.sha256(data.pixels[index].tobytes()).digest()[:16] if seen else b""
            return None, None, None, Seen(key, key, False)
        size, start, pixels = data.size(index), b"", None
        content: str | None = None

        def tell(sha256: str) -> None:
            nonlocal content
            content = sha256

        def opened() -> BinaryIO:
            nonlocal start
            file = decode.hashed(data.opener(index), tell)()
            start = file.read(2)
            file.seek(0)
            return file

        try:  # opened once: of an image on the web a server may give another one later, or none
            if only_headers:
                decode.size(opened)
            else:
                # A JPEG at 1/8 of its size: all of the file is read all the same, much faster.
                picture = decode.decode(opened, exif=False, at_least=Size(1, 1))
                if seen:
                    pixels = pixels_key(picture)
        except ImageError as error:
            return str(error), size, content, None
        if not seen or content is None:
            return None, size, content, None
        reduced = pixels is not None and start == b"\xff\xd8"
        return None, size, content, Seen(bytes.fromhex(content)[:16], pixels, reduced)

    keys: list[Seen | None] = []
    contents = None if unread else np.zeros(len(data), np.uint64)
    if contents is not None and data.pixels is not None:
        contents[:] = [int(data.content_hash(index)[:16], 16) for index in range(len(data))]
    looked_at = range(0 if unread else len(data))
    with progress("checking images", len(looked_at)) as advance:
        for index, (reason, size, content, found) in ahead(look, looked_at, workers, 256):
            if reason is not None:
                unreadable.append((index, reason))
            if seen:
                keys.append(found)
            if contents is not None and content is not None:  # of a file
                contents[index] = int(content[:16], 16)
            line = _line(data, index, content)
            digest.update(line)
            if reason is None:
                of_used.update(line)
            by_size.update(_line(data, index, size))
            advance(1, f"{len(unreadable)} unreadable" if unreadable else "")
    for one in (digest, by_size):
        _add_pixels(one, data)
        if unread:
            _add_names(one, data)
    if unreadable:
        bad = [index for index, _ in unreadable]
        _add_pixels(of_used, data.subset(np.setdiff1d(np.arange(len(data)), bad)))
    return DataCheck(
        unreadable=tuple(unreadable),
        only_headers=only_headers,
        unread=unread,
        fingerprint=digest.hexdigest(),
        used_fingerprint=(of_used if unreadable else digest).hexdigest(),
        size_fingerprint=by_size.hexdigest(),
        seen=tuple(keys),
        contents=contents,
    )


def fingerprint(data: LabelledImages, workers: int) -> str:
    """The fingerprint that `check` takes, without decoding an image."""
    digest = hashlib.sha256(json.dumps(data.classes).encode())

    def content(index: int) -> str | None:
        return _content_hash(data, index) if data.pixels is None else None

    if data.pixels is None and len(data) > READ_UP_TO:
        _add_names(digest, data)
        return digest.hexdigest()
    for index, found in ahead(content, range(len(data)), workers, 256):
        digest.update(_line(data, index, found))
    _add_pixels(digest, data)
    return digest.hexdigest()


def contents(data: LabelledImages, workers: int) -> list[str | None]:
    """What tells the content of each image's file from others, in 16 characters; None where it
    cannot be read. Files that `check` has read are not read again."""
    if data.contents is not None:
        return [f"{number:016x}" if number else None for number in data.contents.tolist()]

    def content(index: int) -> str | None:
        try:
            return data.content_hash(index)[:16]
        except ImageError:
            return None

    return [found for _, found in ahead(content, range(len(data)), workers, 256)]


def _line(data: LabelledImages, index: int, what: str | int | None) -> bytes:
    label = data.labels[index]
    classes = np.flatnonzero(label).tolist() if data.several else int(label)
    return json.dumps([data.names[index], classes, what]).encode()


def _add_names(digest: "hashlib._Hash", data: LabelledImages) -> None:
    """Of many images all that is known without reading one."""
    known = data.names
    names: Iterable[bytes | bytearray] = (
        known.encoded()
        if isinstance(known, Packed)
        else (name.encode("utf-8", "surrogateescape") for name in known)
    )
    names = iter(names)
    while part := list(islice(names, 65536)):
        digest.update(b"\0".join(part) + b"\0")
    kind = np.uint8 if data.several else np.int64
    digest.update(np.ascontiguousarray(data.labels, kind).data)


def _add_pixels(digest: "hashlib._Hash", data: LabelledImages) -> None:
    """And the weights that images have, where they have some."""
    if data.weights is not None:
        digest.update(np.ascontiguousarray(data.weights).data)
    if data.pixels is not None:
        digest.update(json.dumps(data.pixels.shape).encode())
        digest.update(np.ascontiguousarray(data.pixels).data)


def _content_hash(data: LabelledImages, index: int) -> str | None:
    """The SHA-256 of an image's file; None where it cannot be read, which decoding it will say."""
    try:
        digest = hashlib.sha256()
        with data.opener(index)() as file:
            while block := file.read(1024 * 1024):
                digest.update(block)
        return digest.hexdigest()
    except (OSError, ImageError, *ARCHIVE_ERRORS):
        return None
