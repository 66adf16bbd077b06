"""Whether an exported file says what the checkpoint says, measured in the file's own runtime."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvt_cli.base.errors import DataError, ImageError
from cvt_cli.base.package import DATA
from cvt_cli.base.progress import Advance
from cvt_cli.checkpoints.export_metadata import Record
from cvt_cli.engines.protocol import Engine, logits_of, prepared
from cvt_cli.images import decode, finding, transform
from cvt_cli.spec.config import Size
from cvt_cli.spec.formats import FilePrecision
from cvt_cli.spec.preprocessing import Preprocessing

PACKAGED = DATA / "verification"
"""Folder of the images that files are verified on where the user names no others."""

BATCHES = (1, 2, 7)

MOST_CALIBRATION_IMAGES = 300
"""Ranges hardly change after that (NNCF's default)."""


@dataclass(frozen=True)
class Pictures:
    """The images of a folder, decoded to RGB when their turn comes; can be gone through again."""

    paths: tuple[Path, ...]

    @classmethod
    def of(cls, folder: Path, most: int | None = None) -> "Pictures":
        """Every image below a folder, or ``most`` of them at equal distances.

        Raises:
            DataError: there is no such folder, or no image in it.
        """
        if not folder.is_dir():
            raise DataError(f"`{folder}` is not a folder with images")
        try:
            paths = list(finding.images_in(folder))
        except OSError as error:
            raise DataError(f"cannot read `{error.filename}`: {error.strerror}") from None
        if not paths:
            raise DataError(
                f"no images below `{folder}`",
                hint="the folder is searched for .jpg, .png, .webp and other usual suffixes",
            )
        count = min(len(paths), most or len(paths))
        return cls(tuple(paths[index * len(paths) // count] for index in range(count)))

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Image.Image]:
        """Raises ImageError, with the name, if one cannot be read."""
        for path in self.paths:
            try:
                yield decode.load(path, exif=False)
            except ImageError as error:
                raise ImageError(
                    f"`{path}`: {error}", hint="every image is needed here: remove or replace it"
                ) from None


@dataclass(frozen=True)
class Arrays:
    """Pictures as a network's input, float32 (1, 3, H, W)."""

    pictures: Pictures
    preprocessing: Preprocessing

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for picture in self.pictures:
            yield transform.preprocess(picture, self.preprocessing)[None]


TOLERANCES: dict[FilePrecision, float] = {"fp32": 2e-4, "fp16": 0.05, "bf16": 0.5, "int8": 0.25}
"""How far logits may be from torch's in float32, in standard deviations of torch's logits.

It is the largest difference that is held against this, but for "int8" the root mean square over
images, since rounding to 256 steps leaves outliers. CvT-13 and nano measured 1e-5, 0.01, 0.15, 0.1.
"""

INSIDE_TOLERANCE = 0.1
"""How much more is allowed with preprocessing inside, since some grey levels differ by one."""

_IMAGES_AT_ONCE = 8


@dataclass(frozen=True)
class Check:
    """One kind of input, compared."""

    data: str  # "random" or "images"
    height: int  # of the network's input, in pixels
    width: int
    batch_sizes: tuple[int, ...]
    n: int  # inputs
    largest_difference: float  # of any logit
    rms_difference: float  # root mean square over all logits
    spread: float  # standard deviation of torch's logits
    agreeing: int  # inputs whose likeliest class is the same


@dataclass(frozen=True)
class Parity:
    """How near preprocessing inside a file is to ours with Pillow, on the same images."""

    n: int
    largest_grey_levels: float  # of 255
    share_differing: float  # of all values


@dataclass(frozen=True)
class Verification:
    """What was measured, and whether it is good enough."""

    precision: FilePrecision
    tolerance: float  # in standard deviations of torch's logits
    checks: tuple[Check, ...]
    parity: Parity | None

    @property
    def largest_difference(self) -> float:
        """The largest difference of any logit in any check."""
        return max(check.largest_difference for check in self.checks)

    @property
    def passed(self) -> bool:
        """Whether no check exceeds the tolerance."""
        return not any(self.exceeds(check) for check in self.checks)

    def exceeds(self, check: Check) -> bool:
        """Whether a check exceeds the tolerance."""
        if self.precision != "int8":
            found = check.largest_difference
        elif check.data == "images":
            found = check.rms_difference
        else:  # noise is not what the ranges were measured on
            return False
        return not found <= self.tolerance * max(check.spread, 1e-3)

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        return {
            "passed": self.passed,
            "tolerance": self.tolerance,
            "largest_difference": self.largest_difference,
            "top1_agreement": self.images.agreeing / self.images.n,
            "checks": [asdict(check) for check in self.checks],
            "preprocessing_parity": self.parity and asdict(self.parity),
        }

    @property
    def images(self) -> Check:
        """The check on images."""
        return self.checks[-1]


def verify(
    torch: Engine,
    file: Engine,
    record: Record,
    pictures: Iterable[Image.Image],
    parity: Parity | None,
    advance: Advance,
) -> Verification:
    """Compare a file with torch on random input and on images.

    Args:
        torch: the checkpoint, in float32 on the CPU.
        file: the file in its own runtime.
        record: what the file says of itself.
        pictures: RGB, at least one.
        parity: of its preprocessing, if that is inside.
        advance: told of every input.
    """
    checks = [_random(torch, file, one, advance) for one in _sizes(record)]
    differences = _Differences()
    left = iter(pictures)
    while chunk := list(islice(left, _IMAGES_AT_ONCE)):
        ours = logits_of(torch, [transform.preprocess(i, record.preprocessing) for i in chunk])
        theirs = logits_of(file, [prepared(file, i, record.preprocessing) for i in chunk])
        differences.add(ours, theirs)
        advance(len(chunk), "")
    checks.append(differences.check("images", record.preprocessing, (_IMAGES_AT_ONCE,)))
    tolerance = TOLERANCES[record.precision]
    if record.preprocessing_inside:
        tolerance += INSIDE_TOLERANCE
    return Verification(record.precision, tolerance, tuple(checks), parity)


def pixel_parity(
    ours: Preprocessing,
    theirs: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    pictures: Iterable[Image.Image],
) -> Parity:
    """Compare what a file's preprocessing makes of images with what ours does.

    Args:
        ours: the record of both.
        theirs: pixels, uint8 (1, H, W, 3), to images (1, 3, height, width).
        pictures: RGB.
    """
    largest, n, differing, total = 0.0, 0, 0, 0
    std = np.array(ours.std, np.float32)[:, None, None]
    for picture in pictures:
        found = theirs(np.asarray(picture)[None])[0]
        levels = np.abs(found - transform.preprocess(picture, ours)) * std * 255
        n += 1
        largest = max(largest, float(levels.max()))
        differing += int((levels > 0.5).sum())
        total += levels.size
    return Parity(n, round(largest, 3), differing / total)


class _Differences:
    """What is kept of logits that were compared: sums, so that memory does not grow."""

    def __init__(self) -> None:
        self.n = self.agreeing = self.values = 0
        self.largest = self.squares = self.sum = self.sum_of_squares = 0.0

    def add(self, ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
        """Logits (B, classes) of the same inputs."""
        apart = np.abs(theirs.astype(np.float64) - ours)
        self.largest = max(self.largest, float(apart.max()))
        self.squares += float((apart**2).sum())
        self.sum += float(ours.sum(dtype=np.float64))
        self.sum_of_squares += float((ours.astype(np.float64) ** 2).sum())
        self.agreeing += int((ours.argmax(1) == theirs.argmax(1)).sum())
        self.values += ours.size
        self.n += len(ours)

    def check(self, data: str, size: Preprocessing, batches: tuple[int, ...]) -> Check:
        """The result."""
        variance = self.sum_of_squares / self.values - (self.sum / self.values) ** 2
        return Check(
            data,
            size.height,
            size.width,
            batches,
            self.n,
            self.largest,
            (self.squares / self.values) ** 0.5,
            max(variance, 0.0) ** 0.5,
            self.agreeing,
        )


def _sizes(record: Record) -> list[Record]:
    """The file's own size; of one that takes any, another one too, which is not square."""
    own = record.preprocessing
    if not record.dynamic_size:
        return [record]
    other = Size(own.height * 3 // 4, own.width * 5 // 8)
    if min(other) < record.config.smallest_traced:
        other = Size(own.height * 3 // 2, own.width * 7 // 4)
    return [record, record.at(other, Path())]


def _random(torch: Engine, file: Engine, record: Record, advance: Advance) -> Check:
    """Noise, at every batch size."""
    generator = np.random.default_rng(0)
    preprocessing, count = record.preprocessing, max(BATCHES)
    height, width = preprocessing.size
    if record.preprocessing_inside:
        shape = (count, height + height // 2, 2 * width, 3)
        given: NDArray[Any] = generator.integers(0, 256, shape, np.uint8)
        noise = [transform.preprocess(Image.fromarray(one), preprocessing) for one in given]
    else:
        given = generator.standard_normal((count, 3, height, width), np.float32)
        noise = list(given)
    ours = logits_of(torch, noise)
    differences = _Differences()
    for batch in BATCHES:
        differences.add(ours[:batch], logits_of(file, list(given[:batch])))
    advance(count, "")
    return differences.check("random", preprocessing, BATCHES)
