"""Which files are images, by their names; a folder gone through, and what is passed over in it."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from cvt_cli.base.package import installing

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .tif .tiff .avif .ppm .pgm .pbm .jp2".split()
)
"""Suffixes that a folder is searched for; a file that is named is read whatever its name."""

HEIF_SUFFIXES = frozenset(".heic .heif .hif".split())
"""Searched for as well where pillow-heif is installed."""

OTHER_SUFFIXES = HEIF_SUFFIXES | frozenset(
    ".arw .cr2 .cr3 .dcm .dds .dib .dicom .dng .eps .exr .fits .hdr .icns .ico .j2c .j2k .jpc .jpf "
    ".jpg_large .jpx .jxl .jxr .mpo .nef .orf .pcx .pfm .pnm .psd .qoi .raf .raw .rw2 .sgi .svg "
    ".tga .xcf".split()
)
"""Suffixes of pictures that a folder is not searched for, which is said."""

_ARCHIVES = re.compile(r"\.(zip|7z|rar|tgz|tbz2?|txz|tar(\.(gz|bz2|xz|zst))?)$")
"""How names of archives end, in small letters; of pictures in one inside nothing is known."""

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

RUN_FILES = ("plan.json", "split.json")
"""What `cvt finetune` writes into the folder of a run from the first; other things follow."""

RUN_PICTURE = "curves.png"
"""The one picture that it writes there."""


def heif_needs() -> str:
    """What to do so that HEIC is read."""
    return f"HEIC is read where pillow-heif is installed: `{installing('heic')}`"


@dataclass
class Passed:
    """What a search passed over that somebody may have taken for images of theirs."""

    folders: set[str] = field(default_factory=set)  # with their paths
    files: Counter[str] = field(default_factory=Counter)  # by suffix
    archives: Counter[str] = field(default_factory=Counter)  # in folders and archives, by suffix
    links: set[str] = field(default_factory=set)  # to folders, with the links' own paths
    replaced: set[str] = field(default_factory=set)  # members of archives, by a later one
    guessed: set[str] = field(default_factory=set)  # likewise, read under names in CP437

    def add_file(self, name: str) -> None:
        """Count a file that is no image, if it is another picture or an archive by its suffix."""
        if name.startswith(".") or is_image_name(name):
            return
        suffix = os.path.splitext(name)[1].lower()
        if suffix in OTHER_SUFFIXES:
            self.files[suffix] += 1
        elif found := _ARCHIVES.search(name.lower()):
            self.archives[found[0]] += 1

    def add(self, archive: "Passed") -> None:
        """Learn what an archive's index passed over; again is harmless."""
        self.folders |= archive.folders
        self.replaced |= archive.replaced
        self.guessed |= archive.guessed

    def __str__(self) -> str:
        """A sentence; empty if there is nothing to say."""
        parts = []
        for counts, what in (
            (self.files, "files of other image types"),
            (self.archives, "archives, which are read only where they are named themselves"),
        ):
            if counts:
                kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
                parts.append(f"{what} ({kinds})")
        if self.folders:
            # In an order that is the same every time, also of names that are equally common.
            names = Counter(os.path.basename(folder) for folder in sorted(self.folders))
            kinds = ", ".join(f"{count} `{name}`" for name, count in names.most_common())
            parts.append(f"folders that hold no pictures ({kinds})")
        for found, what in (
            (self.links, "links to folders"),
            (self.replaced, "members of archives that have one name with a later one"),
        ):
            if found:
                parts.append(f"{what} ({len(found)}, such as `{min(found)}`)")
        told = [f"skipped: {' and '.join(parts)}"] if parts else []
        if self.files.keys() & HEIF_SUFFIXES:
            told.append(heif_needs())
        if self.guessed:
            told.append(
                f"names in archives of unknown encoding, read as CP437 ({len(self.guessed)}, such "
                f"as `{min(self.guessed)}`)"
            )
        return "; ".join(told)


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
                    elif is_of_runs(entry.path):
                        passed.folders.add(entry.path)
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
    known = suffix in SUFFIXES or (suffix in HEIF_SUFFIXES and reads_heif())
    return known and not name.startswith(".")


def is_no_pictures(folder: str) -> bool:
    """Whether it is a folder's name that systems give, such as ``__MACOSX`` or ``@eaDir``."""
    return folder.casefold() in _NO_PICTURES


def is_run(folder: str | Path) -> bool:
    """Whether a folder is that of a training run."""
    return all(os.path.isfile(os.path.join(folder, name)) for name in RUN_FILES)


def is_of_runs(folder: str) -> bool:
    """Whether a folder is that of a training run, or holds such alone; its pictures are curves."""
    if is_run(folder):
        return True
    found = False
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not (is_folder(entry) and is_run(entry.path)):
                    return False
                found = True
    except OSError:
        return False
    return found


class Runs:
    """Folders of training runs, by the names of the files that were met so far.

    Args:
        names: of files, each with slashes.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._found: dict[str, set[str]] = {}  # which of `RUN_FILES` a folder has
        for name in names:
            self.learn(name)

    def learn(self, name: str) -> None:
        """Note a file that was met."""
        folder, _, file = name.rpartition("/")
        if file in RUN_FILES:
            self._found.setdefault(folder, set()).add(file)

    def hold(self, name: str, passed: Passed) -> bool:
        """Whether a file lies in one of them, at any depth; the folder of all files is none."""
        place = name.rpartition("/")[0]
        while place:
            if len(self._found.get(place, ())) == len(RUN_FILES):
                passed.folders.add(place)
                return True
            place = place.rpartition("/")[0]
        return False


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


def natural_key(name: str) -> tuple[list[str | tuple[int, str]], str]:
    """Sorts names as people do: numbers in them by value, upper and lower case together."""
    parts = re.split(r"(\d+)", name)
    return [_by_value(p) if i % 2 else p.casefold() for i, p in enumerate(parts)], name


def _by_value(digits: str) -> tuple[int, str]:
    """Sorts as the number does; `int` reads no more than some thousand digits."""
    if not digits.isascii():
        digits = "".join(str(unicodedata.decimal(digit)) for digit in digits)
    digits = digits.lstrip("0")
    return len(digits), digits


@cache
def reads_heif() -> bool:
    return find_spec("pillow_heif") is not None
