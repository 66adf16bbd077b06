"""Image files to the network's input: find, decode, turn upright, resize, crop, normalise.

Pillow and NumPy do it, bit for bit as Pillow with torchvision's transforms does (the official
code's way; a test holds the two together).
"""

import hashlib
import io
import os
import re
import stat
import struct
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError

from cvt_cli.base import limits
from cvt_cli.base.errors import ImageError, UsageError
from cvt_cli.spec.preprocessing import Preprocessing

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .tif .tiff .avif .ppm .pgm .pbm .jp2".split()
)
"""Suffixes that a folder is searched for; a file that is named is read whatever its name."""

HEIF_SUFFIXES = frozenset(".heic .heif .hif".split())
"""Searched for as well where pillow-heif is installed."""

OTHER_SUFFIXES = HEIF_SUFFIXES | frozenset(
    ".arw .cr2 .cr3 .dds .dng .eps .exr .hdr .icns .ico .jxl .jxr .nef .orf .pcx .psd .raf .raw "
    ".rw2 .svg .tga .xcf".split()
)
"""Suffixes of pictures that a folder is not searched for, which is said."""

_NO_PICTURES = frozenset(
    (
        "__macosx",  # macOS, in archives
        "@eadir", "#recycle", "#snapshot",  # Synology: thumbnails, bin, copies
        "@recycle", "@recently-snapshot",  # QNAP
        "lost+found",
        "$recycle.bin", "system volume information",  # Windows
    )
)  # fmt: skip
"""Folders that systems make, in small letters: what lies there are no pictures of the user's."""

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

# What Pillow's decoders raise for damaged content, besides OSError (found by mutating files).
_DECODER_ERRORS = (
    ValueError,
    RuntimeError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)

Colour = tuple[int, int, int]
"""Red, green and blue, 0 … 255."""

_LARGE = 64 * 1024**2
"""Bytes from which on a decoded picture waits for room; what is smaller is no danger."""

_SMALL = 256 * 1024
"""Bytes of a file from an archive up to which it is not counted."""

_HEIF_BRANDS = frozenset(
    b"ftyp" + brand for brand in b"heic heix heim heis hevc hevx mif1 msf1".split()
)
_HEIF_NEEDS = "HEIC is read where pillow-heif is installed: `pip install 'cvt-cli[heic]'`"

_PART = 1024**2

LARGEST_RESIZED = 178_956_970
"""Pixels that a resize before a crop makes at most (Pillow's own limit for a decoded image)."""


@dataclass
class Passed:
    """What a search passed over that somebody may have taken for images of theirs."""

    folders: set[str] = field(default_factory=set)  # with their paths
    files: Counter[str] = field(default_factory=Counter)  # by suffix
    links: set[str] = field(default_factory=set)  # to folders, likewise
    replaced: set[str] = field(default_factory=set)  # members of archives, by a later one

    def add_file(self, name: str) -> None:
        """Count a file that was passed over, if it is a picture by its suffix."""
        suffix = os.path.splitext(name)[1].lower()
        if suffix in OTHER_SUFFIXES and not name.startswith("."):
            self.files[suffix] += 1

    def add(self, archive: "Passed") -> None:
        """Learn what an archive's index passed over; again is harmless."""
        self.folders |= archive.folders
        self.replaced |= archive.replaced

    def __str__(self) -> str:
        """A sentence; empty if there is nothing to say."""
        parts = []
        if self.files:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in self.files.most_common())
            parts.append(f"files that are not searched for ({kinds})")
        if self.folders:
            names = Counter(os.path.basename(folder) for folder in self.folders)
            kinds = ", ".join(f"{count} `{name}`" for name, count in names.most_common())
            parts.append(f"folders that hold no pictures ({kinds})")
        for found, what in (
            (self.links, "links to folders"),
            (self.replaced, "members of archives that have one name with a later one"),
        ):
            if found:
                parts.append(f"{what} ({len(found)}, such as `{min(found)}`)")
        text = f"passed over: {' and '.join(parts)}" if parts else ""
        if self.files.keys() & HEIF_SUFFIXES:
            text += f"; {_HEIF_NEEDS}"
        return text


def images_in(folder: Path, passed: Passed | None = None) -> Iterator[Path]:
    """Image files under a folder, by suffix, in natural order: 2.jpg before 10.jpg.

    Hidden files and folders, and those that systems make, are passed over, and links to folders are
    not followed.

    Raises:
        OSError: a folder in it cannot be read.
    """
    for found in walk(folder, passed or Passed()):
        if isinstance(found, OSError):
            raise found
        yield found


def walk(folder: Path, passed: Passed) -> Iterator[Path | OSError]:
    """As `images_in`; for a folder that cannot be read, the error with its name in it."""
    left = [os.fspath(folder)]  # not by os.walk, which some Pythons let call itself
    while left:
        directory, files, inner = left.pop(), [], []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if not is_folder(entry):
                        files.append(entry.name)
                    elif is_no_pictures(entry.name):
                        passed.folders.add(entry.path)
                    elif is_passed_over(entry.name):
                        continue
                    elif entry.is_symlink():
                        passed.links.add(entry.path)
                    else:
                        inner.append(entry.name)
        except OSError as error:
            yield OSError(error.errno, error.strerror, directory)
            continue
        for name in sorted(files, key=natural_key):
            if is_image_name(name):
                yield Path(directory, name)
            else:
                passed.add_file(name)
        inner.sort(key=natural_key, reverse=True)
        left += (os.path.join(directory, name) for name in inner)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to what cannot be reached, or to itself
        return False


def is_image_name(name: str) -> bool:
    """Whether a file name, without folders, is a visible one with an image's suffix."""
    suffix = os.path.splitext(name)[1].lower()
    known = suffix in SUFFIXES or (suffix in HEIF_SUFFIXES and _reads_heif())
    return known and not name.startswith(".")


def is_no_pictures(folder: str) -> bool:
    """Whether it is a folder's name that systems give, such as ``__MACOSX`` or ``@eaDir``."""
    return folder.casefold() in _NO_PICTURES


def is_passed_over(folder: str) -> bool:
    """Whether a folder of this name is searched nowhere: a hidden one or one of a system's."""
    return folder.startswith(".") or is_no_pictures(folder)


def member_parts(name: str, passed: Passed | None = None) -> list[str]:
    """The folders and the file of a member of an archive; none if it is passed over.

    Nothing is written, so that a name may say ``../`` or ``/``: these parts are left out.
    """
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    for depth, part in enumerate(parts, start=1):
        if is_passed_over(part):
            if passed is not None and is_no_pictures(part):
                passed.folders.add("/".join(parts[:depth]))
            return []
    return parts


def is_image_member(name: str, passed: Passed) -> bool:
    """Whether a file in an archive, or below a remote folder, is a visible image by its suffix."""
    parts = member_parts(name, passed)
    if not parts or is_image_name(parts[-1]):
        return bool(parts)
    passed.add_file(parts[-1])
    return False


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts names as people do: numbers in them by value, upper and lower case together."""
    parts = re.split(r"(\d+)", name)
    return [int(p) if i % 2 else p.casefold() for i, p in enumerate(parts)], name


def load(path: Path, exif: bool) -> Image.Image:
    """Decode one image file; see `decode`."""
    return decode(lambda: open_regular(path), exif)


class Content(io.BytesIO):
    """An image's file in memory; while it is open it counts among the bytes in flight."""

    def __init__(self, content: bytes = b"", share: limits.Share | None = None) -> None:
        super().__init__(content)
        self.share = share

    def close(self) -> None:
        super().close()
        if self.share is not None:
            self.share.release()

    def __del__(self) -> None:
        self.close()


_Argument = TypeVar("_Argument")


def read(size: int, source: Callable[[_Argument], bytes], argument: _Argument) -> BinaryIO:
    """What ``source`` makes of its argument, ``size`` bytes at most, when there is room for it."""
    if size <= _SMALL:
        return io.BytesIO(source(argument))
    share = limits.contents.take(size)
    try:
        content = source(argument)
    except BaseException:
        share.release()
        raise
    share.release(keep=len(content))
    return Content(content, share)


def too_large() -> ImageError:
    """Of a file that has more bytes than are read."""
    return ImageError(f"too large: more than {limits.LARGEST_FILE:,} bytes")


def decode(
    opened: Callable[[], BinaryIO],
    exif: bool,
    at_least: tuple[int, int] | None = None,
    background: Colour | None = None,
) -> Image.Image:
    """Decode one image to RGB, by content and not by suffix; the first frame of several.

    Args:
        opened: gives the file.
        exif: turn the picture upright as its EXIF orientation says.
        at_least: height and width; a JPEG is then decoded at the smallest of 1/1, 1/2, 1/4 and 1/8
            of its size that has them, which is faster and not exact (Pillow's draft mode).
        background: what shows where the picture is transparent; by default the colours that it
            has there.

    Raises:
        ImageError: it cannot be read; the message is a reason such as "empty file (0 bytes)".
    """
    with _explained(), opened() as file, _identified(file) as image:
        if at_least is not None:
            image.draft("RGB", at_least[::-1])
        # A pixel has up to four bytes in Pillow; what is not RGB is held twice.
        needed = image.width * image.height * (4 if image.mode == "RGB" else 8)
        share = limits.pictures.take(needed) if needed > _LARGE else None
        try:
            image.load()  # before the file is closed
            result = to_rgb(upright(image) if exif else image, background)
        except BaseException:
            if share is not None:
                share.release()
            raise
        if share is not None:
            weakref.finalize(result, share.release)
        return result


def _identified(file: BinaryIO) -> Image.Image:
    """Open an image; raises as Pillow, and ImageError where pillow-heif is missing."""
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        if file.read(12)[4:] not in _HEIF_BRANDS:
            raise
        if not _reads_heif():
            raise ImageError(f"a HEIC picture: {_HEIF_NEEDS}") from None
        import pillow_heif

        pillow_heif.register_heif_opener()
    except ValueError as error:
        file.seek(0)
        if "Decompressed data too large" not in str(error):
            raise
        file = _without_text(file)
    file.seek(0)
    return Image.open(file)


@cache
def _reads_heif() -> bool:
    return find_spec("pillow_heif") is not None


def _without_text(file: BinaryIO) -> BinaryIO:
    """A PNG without its texts and colour profile, which Pillow unpacks, up to a limit, unasked."""
    kept = io.BytesIO()
    kept.write(file.read(8))
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[:4], "big")
        if head[4:] in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            file.seek(length + 4, os.SEEK_CUR)
            continue
        body = file.read(min(length + 4, limits.LARGEST_FILE))
        if kept.tell() + len(body) > limits.LARGEST_FILE:
            raise too_large()
        kept.write(head + body)
    return kept


def hashed(opened: Callable[[], BinaryIO], tell: Callable[[str], None]) -> Callable[[], BinaryIO]:
    """What opens the same file and tells the SHA-256 of its content, whatever its decoder reads.

    Args:
        opened: gives the file, which can be read anew from its start.
        tell: told whenever it is opened.
    """

    def open_and_tell() -> BinaryIO:
        file = opened()
        try:
            tell(_digest(file))
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    return open_and_tell


def content_hash(opened: Callable[[], BinaryIO]) -> str:
    """The SHA-256 of a file's content; raises ImageError as `decode`."""
    with _explained(), opened() as file:
        return _digest(file)


def _digest(file: BinaryIO) -> str:
    """The SHA-256 of what is left of a file."""
    found = hashlib.sha256()
    while part := file.read(_PART):
        found.update(part)
    return found.hexdigest()


def size(opened: Callable[[], BinaryIO]) -> tuple[int, int]:
    """Height and width in pixels as the file's header says, before EXIF; raises as `decode`."""
    with _explained(), opened() as file, _identified(file) as image:
        return image.height, image.width


@contextmanager
def _explained() -> Iterator[None]:
    """Raises ImageError with a reason for whatever opening and decoding raise."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image, or of a kind that Pillow cannot read") from None
    except Image.DecompressionBombError:
        raise ImageError(
            f"too large: more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
        ) from None
    except MemoryError:
        raise ImageError("too large for the memory of this machine") from None
    except OSError as error:
        # Either the system's (with a strerror) or a decoder's: "image file is truncated (…)".
        raise ImageError((error.strerror or str(error)).lower()) from None
    except _DECODER_ERRORS as error:
        raise ImageError(f"damaged: {error}") from None


_ACCEPTED_IN_MEMORY = (
    "accepted are arrays (H, W, 3) or (H, W) and tensors (3, H, W) of integers 0 to 255 or floats "
    "0 to 1"
)


def from_memory(image: object, exif: bool, background: Colour | None = None) -> Image.Image:
    """An image that Python holds, to RGB.

    Args:
        image: a Pillow image; an array (H, W, 3) or (H, W), or a tensor (3, H, W), of integers
            0 … 255 or floats 0 … 1; a channel more is alpha.
        exif: turn a Pillow image upright as its EXIF orientation says.
        background: what shows where it is transparent.

    Raises:
        ImageError: it is something else, or a Pillow image whose file cannot be read.
    """
    if isinstance(image, Image.Image):
        with _explained():
            image.load()
            return to_rgb(upright(image) if exif else image, background)
    if isinstance(image, list | tuple):  # of numbers: a row of an image would pass for one
        raise ImageError(f"{type(image).__name__} is no image; {_ACCEPTED_IN_MEMORY}")
    try:
        array = _as_array(image)
    except Exception as error:  # what its class raises: a tensor without data or of a sparse layout
        raise ImageError(
            f"{type(image).__name__} gives no array ({error}); {_ACCEPTED_IN_MEMORY}"
        ) from None
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not fits or array.dtype.kind not in "uif" or array.size == 0:
        raise ImageError(
            f"{type(image).__name__} of {array.dtype} with shape {array.shape}; "
            + _ACCEPTED_IN_MEMORY
        )
    return to_rgb(Image.fromarray(_as_8_bits(array)), background)


def _as_array(image: Any) -> NDArray[Any]:
    if not hasattr(image, "detach"):
        return np.asarray(image)
    tensor = image.detach().cpu()  # of torch, which is not imported for this
    try:
        array = np.asarray(tensor.numpy())
    except TypeError:  # NumPy has no bfloat16
        array = np.asarray(tensor.float().numpy())
    return array.transpose(1, 2, 0) if array.ndim == 3 else array


def _as_8_bits(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Integers 0 … 255 or floats 0 … 1 of any width, to 8 bits; raises ImageError for others."""
    if array.dtype == np.uint8:
        return array.astype(np.uint8, copy=False)
    full_scale = 1 if array.dtype.kind == "f" else 255
    low, high = array.min(), array.max()
    if not (0 <= low and high <= full_scale):  # so for NaN
        raise ImageError(
            f"values of {array.dtype} from {low:g} to {high:g}; accepted are integers 0 to 255 and "
            "floats 0 to 1"
        )
    return np.rint(array.astype(np.float64) * (255 / full_scale)).astype(np.uint8)


def open_regular(path: Path) -> BinaryIO:
    """Open a file that has bytes to read; a pipe would block for ever."""
    info = path.stat()
    if stat.S_ISDIR(info.st_mode):
        raise ImageError("a folder, not a file")
    if not stat.S_ISREG(info.st_mode):
        raise ImageError("not a regular file (a pipe, socket or device)")
    if info.st_size == 0:
        raise ImageError("empty file (0 bytes)")
    return path.open("rb")


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation."""


def upright(image: Image.Image) -> Image.Image:
    """Turned as the EXIF orientation says; what EXIF holds besides is not looked at.

    `ImageOps.exif_transpose` writes the rest anew, which fails where a part of it is broken.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, *_DECODER_ERRORS):  # unreadable, which is as good as none
        return image
    return image if turn is None else image.transpose(turn)


def colour(text: str) -> Colour:
    """A colour by its name or as ``#rrggbb``, as Pillow knows them.

    Raises:
        UsageError: it is none.
    """
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError:
        raise UsageError(
            f"`{text}` is no colour; accepted are names such as `white`, and `#rrggbb`"
        ) from None


def to_rgb(image: Image.Image, background: Colour | None = None) -> Image.Image:
    """Any mode that Pillow opens to RGB; deep greys are scaled to 8 bits.

    Alpha is dropped, so that transparent pixels have the colours that the file holds for them, or
    with a background the picture is laid upon it.

    Raises:
        ImageError: it has no pixels.
    """
    if not (image.width and image.height):
        raise ImageError(f"no pixels: {image.width} of width and {image.height} of height")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_grey_to_8_bits(np.asarray(image), image.mode))
    elif background is not None and image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, background), over).convert("RGB")
    if image.mode == "RGB":
        return image
    if image.mode == "P" and "transparency" in image.info:
        # Straight to RGB, Pillow warns about transparency given in bytes.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _grey_to_8_bits(values: NDArray[np.generic], mode: str) -> NDArray[np.uint8]:
    """Scale deep grey values to 0 … 255; Pillow's own conversion clips them.

    The full scale is the mode's where it has one (65535); 32-bit integers and floats are taken as
    holding the smallest of 1 (floats only), 255, 65535 and their own maximum that is not exceeded.
    """
    scaled = np.nan_to_num(values.astype(np.float64))
    largest = float(scaled.max(initial=0.0))
    if mode.startswith("I;16"):
        full_scale = 65535.0
    else:
        scales = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
        full_scale = next((scale for scale in scales if largest <= scale), largest)
    return np.rint(np.clip(scaled / full_scale, 0.0, 1.0) * 255.0).astype(np.uint8)


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """An RGB image to the network's input, float32 (3, H, W)."""
    return normalise(resize(image, preprocessing), preprocessing)


def normalise(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """An RGB image that has the size it shall have, (H, W), to float32 (3, H, W)."""
    pixels = np.asarray(image)  # (H, W, 3) uint8
    table = _normalisation_table(preprocessing)
    result = np.empty((3, *pixels.shape[:2]), dtype=np.float32)
    for channel in range(3):
        np.take(table[channel], pixels[:, :, channel], out=result[channel])
    return result


def resize(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize and crop an RGB image to the record's height and width, still in 8 bits."""
    height, width = preprocessing.height, preprocessing.width
    new_height, new_width = preprocessing.resized(image.height, image.width)
    resample = _RESAMPLING[preprocessing.interpolation]
    # As torchvision's CenterCrop; both are 0 for a squash.
    top = round((new_height - height) / 2.0)
    left = round((new_width - width) / 2.0)
    if new_height * new_width > LARGEST_RESIZED:
        # An extreme shape: resample only what the crop keeps. Pillow's 8-bit rounding between its
        # two passes then falls differently, so this is not equal to the bit.
        across, down = image.width / new_width, image.height / new_height
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return image.resize((width, height), resample, box=box)
    # Whole, then cropped: Pillow picks the order of its two passes by the sizes, so that resampling
    # the crop alone may give other bits.
    image = image.resize((new_width, new_height), resample)
    return image.crop((left, top, left + width, top + height))


@cache
def _normalisation_table(preprocessing: Preprocessing) -> NDArray[np.float32]:
    """(value / 255 - mean) / std in float32 for the 256 values of each channel: (3, 256)."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    mean = np.array(preprocessing.mean, dtype=np.float32)[:, None]
    std = np.array(preprocessing.std, dtype=np.float32)[:, None]
    return (values - mean) / std
