"""Image files, and images that Python holds, to upright RGB."""

import errno
import hashlib
import io
import os
import stat
import struct
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError

from cvt_cli.base import limits, streams
from cvt_cli.base.errors import ImageError, UsageError
from cvt_cli.images.finding import heif_needs, reads_heif
from cvt_cli.spec.config import Size

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

_PART = 1024**2


def load(path: Path, exif: bool) -> Image.Image:
    """Decode one image file to RGB, as `decode` does."""
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


def too_large(most: int | None = None) -> ImageError:
    """What to raise for a file that has more bytes than are read."""
    return ImageError(f"too large: more than {most or limits.LARGEST_FILE:,} bytes")


def decode(
    opened: Callable[[], BinaryIO],
    exif: bool,
    at_least: Size | None = None,
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
        held = image.width * image.height * (4 if image.mode == "RGB" else 8)
        needed = max(held, image.width * image.height * _decoding(image))
        share = limits.pictures.take(needed) if needed > _LARGE else None
        try:
            image.load()  # before the file is closed
            result = to_rgb(upright(image) if exif else image, background)
        except BaseException:
            if share is not None:
                share.release()
            raise
        if share is not None:
            share.release(keep=held)
            weakref.finalize(result, share.release)
        return result


_DECODERS = {"JPEG2000": 20, "WEBP": 16, "AVIF": 10, "HEIF": 8}
"""Bytes that some decoders hold for a pixel at the most, as measured."""


def _decoding(image: Image.Image) -> int:
    """Bytes that a picture's decoder holds for a pixel at the most, where that may be more."""
    if image.info.get("progressive"):
        return 7
    return 12 if image.mode == "F" else _DECODERS.get(image.format or "", 0)


def _identified(file: BinaryIO) -> Image.Image:
    """Open an image; raises as Pillow, and ImageError for what is not read here."""
    image = _opened(file)
    if image.format == "EPS":  # which Pillow has Ghostscript run, and which may have no end
        raise ImageError("an EPS file, which is a program and is not run")
    if image.info.get("progressive") and _scans(file) > limits.MOST_SCANS:
        raise ImageError(f"a JPEG of more than {limits.MOST_SCANS} scans, which takes too long")
    return image


def _scans(file: BinaryIO) -> int:
    """How often a JPEG goes over its picture, each time of which may take a few bytes."""
    place, found, last = file.tell(), 0, b""
    file.seek(0)
    while part := file.read(_PART):
        found += (last + part).count(b"\xff\xda")  # which stands nowhere in what is packed
        last = part[-1:]
    file.seek(place)
    return found


def _opened(file: BinaryIO) -> Image.Image:
    """Open an image; raises as Pillow, and ImageError where pillow-heif is missing."""
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        if file.read(12)[4:] not in _HEIF_BRANDS:
            raise
        if not reads_heif():
            raise ImageError(f"a HEIC image: {heif_needs()}") from None
        import pillow_heif

        pillow_heif.register_heif_opener()
        file.seek(0)
        try:
            return Image.open(file)
        except UnidentifiedImageError:
            file.seek(0)
            pillow_heif.open_heif(file)  # raises what is wrong with it, which Pillow keeps back
            raise
    except ValueError as error:
        file.seek(0)
        if "Decompressed data too large" not in str(error):
            raise
        file = _without_text(file)
    file.seek(0)
    return Image.open(file)


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


def size(opened: Callable[[], BinaryIO]) -> Size:
    """Height and width in pixels as the file's header says, before EXIF; raises as `decode`."""
    with _explained(), opened() as file, _identified(file) as image:
        return Size(image.height, image.width)


@contextmanager
def _explained() -> Iterator[None]:
    """Raises ImageError with a reason for whatever opening and decoding raise."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image, or of a type that Pillow cannot read") from None
    except Image.DecompressionBombError:
        raise ImageError(
            f"too large: more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
        ) from None
    except Warning as warning:  # which the program that calls has made an error
        raise ImageError(f"a warning that is an error here: {warning}") from None
    except MemoryError:
        raise ImageError("too large for the memory of this machine") from None
    except OSError as error:
        raise ImageError(reason(error)) from None
    except _DECODER_ERRORS as error:
        raise ImageError(f"damaged: {str(error).strip()}") from None


def reason(error: OSError) -> str:
    """The system's (with a strerror) or a decoder's: "image file is truncated (…)"."""
    if error.strerror is None and isinstance(error, FileNotFoundError):
        return os.strerror(errno.ENOENT).lower()  # of fsspec, which tells the name alone
    return (error.strerror or str(error)).lower()


_ACCEPTED_IN_MEMORY = (
    "accepted are arrays (H, W, 3) or (H, W) and tensors (3, H, W) of integers 0 to 255 or floats "
    "0 to 1"
)


class _Alone:
    """Locks for what is to be read by one thread at a time, and does not see to that itself.

    So is an opened Pillow image, which is read from its file, and its EXIF too, when it is first
    used: where two threads begin that, it has wrong pixels.
    """

    def __init__(self) -> None:
        if hasattr(os, "register_at_fork"):  # a thread that is gone there may hold one
            os.register_at_fork(after_in_child=self._start)
        self._start()

    def _start(self) -> None:
        self._locks = [threading.Lock() for _ in range(64)]

    def lock_of(self, thing: object) -> threading.Lock:
        """Always the same for one thing; others seldom have it."""
        return self._locks[id(thing) // 16 % len(self._locks)]


alone = _Alone()


def as_it_is_now(image: object) -> Image.Image:
    """An image that Python holds, for `from_memory`: no change that is made to it later is seen.

    A Pillow image that has not been read from its file is given back itself, unless it has several
    frames, of which another may be sought.

    Raises:
        ImageError: as `from_memory`.
    """
    if not isinstance(image, Image.Image):
        return _from_array(image).copy()
    with _explained(), alone.lock_of(image):
        if getattr(image, "tile", None) and not getattr(image, "is_animated", False):
            return image
        kept = image.copy() if (kept := _grey_in_8_bits(image)) is image else kept
        if turned := image.getexif().get(ExifTags.Base.Orientation):
            kept.getexif()[ExifTags.Base.Orientation] = turned
        return kept


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
        with _explained(), alone.lock_of(image):
            image.load()
            return to_rgb(upright(image) if exif else image, background)
    return to_rgb(_from_array(image), background)


def _from_array(image: object) -> Image.Image:
    """An array or a tensor; raises ImageError for what is none."""
    # A row of an image, in numbers, would pass for one.
    if isinstance(image, int | float | list | tuple | None):
        raise ImageError(f"{type(image).__name__} is not an image; {_ACCEPTED_IN_MEMORY}")
    try:
        array = _as_array(image)
    except Exception as error:  # what its class raises: a tensor without data or of a sparse layout
        raise ImageError(
            f"{type(image).__name__} cannot be converted to an array ({error}); "
            + _ACCEPTED_IN_MEMORY
        ) from None
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not fits or array.dtype.kind not in "uif" or array.size == 0:
        raise ImageError(
            f"{type(image).__name__} of {array.dtype} with shape "
            f"{tuple(getattr(image, 'shape', array.shape))}; {_ACCEPTED_IN_MEMORY}"
        )
    return Image.fromarray(_as_8_bits(array))


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
    if info.st_size > limits.LARGEST_ON_DISK:  # a sparse one would be hashed for hours
        raise too_large(limits.LARGEST_ON_DISK)
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
    except (OSError, Warning, *_DECODER_ERRORS):  # unreadable, which is as good as none
        return image
    return image if turn is None else image.transpose(turn)


def colour(text: str) -> Colour:
    """A colour by its name or as ``#rrggbb``, as Pillow knows them.

    Raises:
        UsageError: it is none.
    """
    try:
        red, green, blue, *opacity = ImageColor.getrgb(text)
        if opacity:
            raise ValueError
    except (ValueError, TypeError, AttributeError):  # the others from Python, of what is no text
        raise UsageError(
            f"`{text}` is not a color; accepted are names such as `white`, and `#rrggbb`"
        ) from None
    return red, green, blue


def to_rgb(image: Image.Image, background: Colour | None = None) -> Image.Image:
    """Any mode that Pillow opens to RGB; deep greys are scaled to 8 bits.

    Alpha is dropped, so that transparent pixels have the colours that the file holds for them, or
    with a background the picture is laid upon it.

    Raises:
        ImageError: it has no pixels.
    """
    if not (image.width and image.height):
        raise ImageError(f"no pixels: width {image.width}, height {image.height}")
    image = _grey_in_8_bits(image)
    if background is not None and image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, background), over).convert("RGB")
    if image.mode == "RGB":
        return image
    if image.mode == "P" and "transparency" in image.info:
        # Straight to RGB, Pillow warns about transparency given in bytes.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _grey_in_8_bits(image: Image.Image) -> Image.Image:
    """A picture of deep greys in 8 bits, and black is 0; others as they are."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    tags = getattr(image, "tag_v2", {})  # of a TIFF: Pillow leaves these two to who reads it
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    is_16 = image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I")
    values = _grey_to_8_bits(np.asarray(image), bits if is_16 else None)
    white_is_zero = tags.get(ExifTags.Base.PhotometricInterpretation, 1) == 0
    return Image.fromarray(255 - values if white_is_zero else values)


def _grey_to_8_bits(values: NDArray[np.generic], bits: int | None) -> NDArray[np.uint8]:
    """Scale deep grey values to 0 … 255; Pillow's own conversion clips them.

    The full scale is that of the bits (16: 65535). Where these are not known, values are taken as
    holding the smallest of 1 (floats only), 255, 65535 and their own maximum that is not exceeded,
    which the user is told of.
    """
    largest = max((float(part.max(initial=0.0)) for part in _wide(values)), default=0.0)
    if bits is not None:
        full_scale = 2.0**bits - 1
    else:
        floats = values.dtype.kind == "f"
        scales = (1.0, 255.0, 65535.0) if floats else (255.0, 65535.0)
        full_scale = next((scale for scale in scales if largest <= scale), largest)
        _tell_of_scale("floats" if floats else "integers", full_scale)
    # A few rows after the other: in float64 all of them would take many times the picture.
    return np.concatenate(
        [
            np.rint(np.clip(part / full_scale, 0.0, 1.0) * 255.0).astype(np.uint8)
            for part in _wide(values)
        ]
    )


_told_of: set[tuple[str, str]] = set()


def _tell_of_scale(values: str, full_scale: float) -> None:
    """Say once for each scale that it was guessed: those of one series may differ in it."""
    white = f"{full_scale:g}" if full_scale in (1, 255, 65535) else "its largest value"
    if (values, white) not in _told_of:
        _told_of.add((values, white))
        streams.say(
            f"a grey picture of 32-bit {values} does not say which value is white: taken is "
            f"{white}, since none is larger; pictures of 8 or 16 bits say it"
        )


def _wide(values: NDArray[np.generic]) -> Iterator[NDArray[np.float64]]:
    """The rows of a picture in float64, some at a time."""
    rows = max(1, _PART // max(1, values.shape[1]))
    for first in range(0, len(values), rows):
        yield np.nan_to_num(values[first : first + rows].astype(np.float64))
