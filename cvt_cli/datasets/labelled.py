"""Labelled images: which files there are, and which class each belongs to.

A place is a folder, a .zip or an uncompressed .tar (`trees`). It may hold ``train/`` beside
``val/`` or ``test/`` (`PARTS`), or be one of these itself; a lone folder in which everything lies
is entered. Understood are

    <class>/…                       class folders
    *.JPEG with val.txt             lines "name index", 0-based in sorted WNID order (ImageNet)
    ILSVRC2012_val_*.JPEG           with ILSVRC2012_validation_ground_truth.txt and meta.mat
    ILSVRC2012_img_val.tar          with ILSVRC2012_devkit_t12.tar.gz, as they are published
    images/ with val_annotations.txt                  Tiny ImageNet
    cifar-10-batches-py, cifar-100-python             CIFAR's own files
    images/ with annotations/{trainval,test}.txt      Oxford-IIIT Pet
    jpg/ with setid.mat and imagelabels.mat           Flowers-102
"""

import hashlib
import importlib.util
import io
import json
import os
import pickle
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvt_cli.base import files, places, text, torchrun
from cvt_cli.base.errors import DataError
from cvt_cli.base.progress import Say
from cvt_cli.images import decode
from cvt_cli.images.archives import ARCHIVE_ERRORS, Folder, Tar, Tree, open_tree
from cvt_cli.images.decode import Colour, Passed
from cvt_cli.spec.labels import Labels, imagenet, imagenet_wnids

Split = Literal["train", "test"]

PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What the folders of the parts of a set are called, in any case of letters; first wins."""

_PART_OF = {name: part for part, names in PARTS.items() for name in names}


@dataclass(frozen=True)
class _KnownSet:
    """A set that torchvision can fetch."""

    folders: tuple[str, ...]  # where it is looked for below the data folder; first, where it lands
    torchvision: str  # the class there
    size: str
    host: str


_KNOWN = {
    "cifar10": _KnownSet(
        ("cifar-10-batches-py", "cifar10"), "CIFAR10", "170 MB", "www.cs.toronto.edu"
    ),
    "cifar100": _KnownSet(
        ("cifar-100-python", "cifar100"), "CIFAR100", "169 MB", "www.cs.toronto.edu"
    ),
    "oxford-iiit-pet": _KnownSet(
        ("oxford-iiit-pet",), "OxfordIIITPet", "811 MB", "www.robots.ox.ac.uk"
    ),
    "flowers102": _KnownSet(("flowers-102",), "Flowers102", "345 MB", "www.robots.ox.ac.uk"),
    "imagenette": _KnownSet(("imagenette2",), "Imagenette", "1.6 GB", "s3.amazonaws.com"),
}

KNOWN_SETS = tuple(_KNOWN)
"""Sets that ``--data`` takes by name; a name wins over a folder unless written ``./name``."""

_FETCH_TIMEOUT_SEC = 30.0
"""For which a server may be silent; torchvision itself would wait for ever."""


@dataclass(frozen=True)
class LabelledImages:
    """Images with the class that each belongs to; decoded when asked for."""

    root: Path
    classes: tuple[str, ...]  # names, in the order that `labels` counts
    names: tuple[str, ...]  # one per image: its path below `root`, or file and position in it
    labels: NDArray[np.int64]  # (n,) index into `classes`
    pixels: NDArray[np.uint8] | None = None  # (n, H, W, 3) where the set is held in memory
    layout: str = "class folders"  # what told the classes, and of what kind of archive, in words
    tree: Tree | None = None  # what `names` are opened in; None is the folder `root`

    def __len__(self) -> int:
        return len(self.names)

    def load(
        self,
        index: int,
        exif: bool,
        at_least: tuple[int, int] | None = None,
        background: Colour | None = None,
        tell_hash: Callable[[str], None] | None = None,
    ) -> Image.Image:
        """One image as RGB (see `images.decode`); may be called from several threads.

        Args:
            index: of the image.
            exif: as of `images.decode`, likewise the next two.
            at_least: height and width.
            background: of what is transparent.
            tell_hash: told the image's `content_hash`, where it can be read.

        Raises:
            ImageError: it cannot be read.
        """
        if self.pixels is not None:
            if tell_hash is not None:
                tell_hash(self.content_hash(index))
            return Image.fromarray(self.pixels[index])
        opened = self._opener(index)
        if tell_hash is not None:
            opened = decode.hashed(opened, tell_hash)
        return decode.decode(opened, exif, at_least, background)

    def content_hash(self, index: int) -> str:
        """The SHA-256 of an image's file, or of its pixels where these are held in memory.

        Raises:
            ImageError: it cannot be read.
        """
        if self.pixels is not None:
            return hashlib.sha256(self.pixels[index].tobytes()).hexdigest()
        return decode.content_hash(self._opener(index))

    def _opener(self, index: int) -> Callable[[], BinaryIO]:
        return partial(self.files.open, self.names[index])

    @property
    def files(self) -> Tree:
        """What the names are opened in, where the set is not held in memory."""
        return self.tree or Folder(self.root)

    def subset(self, indices: NDArray[np.int64]) -> "LabelledImages":
        """The images at these positions, with all classes kept."""
        return replace(
            self,
            names=tuple(self.names[index] for index in indices),
            labels=self.labels[indices],
            pixels=None if self.pixels is None else self.pixels[indices],
        )

    def split(self, fraction: float, seed: int) -> tuple["LabelledImages", "LabelledImages"]:
        """Set a part of every class aside, drawn by ``seed``: (the rest, the part set aside).

        Raises:
            DataError: a class has fewer than 2 images.
        """
        generator = np.random.default_rng(seed)
        aside = np.zeros(len(self), dtype=bool)
        for label, name in enumerate(self.classes):
            members = np.flatnonzero(self.labels == label)
            if len(members) < 2:
                raise DataError(
                    f"class `{name}` in `{self.root}` has {len(members)} images; "
                    "at least 2 are needed, one to train on and one to choose the best epoch by"
                )
            count = min(max(1, round(fraction * len(members))), len(members) - 1)
            aside[generator.permutation(members)[:count]] = True
        return self.subset(np.flatnonzero(~aside)), self.subset(np.flatnonzero(aside))


def open_dataset(
    data: str, split: Split, data_dir: Path, *, offline: bool = True, say: Say | None = None
) -> LabelledImages:
    """The images to train on, or those to evaluate on, of a known set, a folder or an archive.

    Args:
        data: a name in `KNOWN_SETS` or a path.
        split: "train" takes ``train/``, "test" takes ``val/`` or else ``test/`` (`PARTS` has their
            other names); a place that has no parts is taken as it is. Of Pets and Flowers, "train"
            is all that is not test.
        data_dir: where known sets are looked for, and put when they are fetched.
        offline: a known set that is not there is not fetched.
        say: told, before a set is fetched, what, how large, from where and into which folder; and
            what lies there and is not used.

    Raises:
        DataError: nothing there, not laid out as this module says, not to be fetched, or a folder
            that cannot be read.
    """
    if data in _KNOWN:
        return _open_known(data, split, data_dir, offline, say)
    path = Path(places.expanded(data))
    if not os.path.exists(path):
        raise DataError(
            f"`{data}` does not exist; accepted are a folder, a .zip, a .tar and the names "
            + ", ".join(f"`{name}`" for name in KNOWN_SETS)
        )
    return _open_split(_entered(open_tree(path)), split, _once(say))


def open_validation(
    data: str, training: LabelledImages, say: Say | None = None
) -> LabelledImages | None:
    """The images of ``val/`` beside ``train/``, with the classes of the training images.

    None where the data has no such folder, as the known sets.

    Raises:
        DataError: it has images of a class that the training images do not have.
    """
    tree = _validation(data)
    if tree is None:
        return None
    found = _labelled(tree, _once(say))
    try:
        index, _ = match_classes(found.classes, Labels(training.classes))
    except DataError as error:
        raise DataError(
            f"{error}",
            hint=f"put images of them below `{training.root}` too, to train on, or take them out "
            f"of `{found.root}`",
        ) from None
    return replace(found, classes=training.classes, labels=index[found.labels])


def pass_over_validation(data: str, say: Say) -> None:
    """Say that ``val/`` beside ``train/`` is not used, if there is one."""
    if (tree := _validation(data)) is not None:
        say(f"not used: `{tree.root}`; images to choose by are set aside from those to train on")


def _validation(data: str) -> Tree | None:
    if data in _KNOWN:
        return None
    tree = _entered(open_tree(Path(places.expanded(data))))
    parts = _parts(tree)
    return tree.below(parts["val"]) if {"train", "val"} <= parts.keys() else None


def _nobody(message: str) -> None:
    """Say it to nobody."""


def _once(say: Say | None) -> Say:
    """Of several processes that open the same data, one says what it found."""
    return say if say is not None and torchrun.rank() == 0 else _nobody


def _open_split(tree: Tree, split: Split, say: Say) -> LabelledImages:
    for reader in (_cifar10, _cifar100, _pets, _flowers):
        if (found := reader(tree, split)) is not None:
            return found
    parts = _parts(tree)
    if split == "test" and "val" not in parts:
        if isinstance(tree, Folder) and tree.has(_IMAGENET_TAR):
            return _labelled(open_tree(tree.path / _IMAGENET_TAR), say)
    for part in ("train",) if split == "train" else ("val", "test"):
        if part in parts:
            used = [parts[other] for other in ("train", "val", part) if other in parts]
            if beside := _beside(tree, used):
                say(f"not used: {_some(beside)} beside `{tree.root / parts[part]}`")
            return _labelled(tree.below(parts[part]), say)
    if parts:
        there = " and ".join(f"`{name}`" for name in parts.values())
        wanted = "`train` to train on" if split == "train" else "`val` nor `test` to evaluate on"
        own = tree.root / next(iter(parts.values()))
        raise DataError(
            f"`{tree.root}` has {there} but {'no' if split == 'train' else 'neither'} {wanted}",
            hint=f"name the folder itself: --data {shlex.quote(str(own))}"
            if isinstance(tree, Folder)
            else "unpack it and name the folder itself",
        )
    return _labelled(tree, say)


# --- parts, and folders around everything


def _parts(tree: Tree) -> dict[str, str]:
    """The folder of each part that there is.

    A part holds class folders, or images and a table of their labels. A folder of such a name that
    holds images itself is a class, unless another folder shows that these are parts.
    """
    folders, _ = tree.listing()
    # The names that come first in `PARTS`, and of one in two cases of letters the small ones.
    named = sorted(
        (name for name in folders if name.casefold() in _PART_OF),
        key=lambda name: (list(_PART_OF).index(name.casefold()), name.islower() - 1, name),
    )
    kinds = {name: _kind(tree, name) for name in named}
    if "part" not in kinds.values():
        others = any(tree.has_images(name) for name in folders if name not in named)
        kinds = {name: kind for name, kind in kinds.items() if kind == "both" and not others}
    parts: dict[str, str] = {}
    for name, kind in kinds.items():
        if kind != "empty":
            parts.setdefault(_PART_OF[name.casefold()], name)
    return parts


def _kind(tree: Tree, name: str) -> Literal["part", "class", "both", "empty"]:
    """What a folder with a part's name is by what it holds; "both" has images beside folders."""
    inner = tree.below(name)
    folders, files = inner.listing()
    own = any(decode.is_image_name(file) for file in files)
    if own and (_has_table(inner) or _has_table(tree)):
        return "part"
    if any(inner.has_images(folder) for folder in folders):
        return "both" if own else "part"
    return "class" if own else "empty"


def _beside(tree: Tree, used: list[str]) -> list[str]:
    """What lies beside the parts that are used and has images, as words for a message."""
    folders, files = tree.listing()
    unused = [
        f"`{name}`"
        for name in sorted(folders, key=decode.natural_key)
        if name not in used and tree.has_images(name)
    ]
    count = sum(map(decode.is_image_name, files))
    return unused + ([f"{count} images"] if count else [])


_HARMLESS = ("readme", "license", "licence", "desktop", "thumbs")
"""Names, without suffix, of files that lie in a folder and are not part of the set."""


def _entered(tree: Tree) -> Tree:
    """The lone folder in which everything lies, unless it is a part or a lone class."""
    while True:
        folders, files = tree.listing()
        stems = (name.partition(".")[0].casefold() for name in files)
        if len(folders) != 1 or any(stem not in _HARMLESS for stem in stems):
            return tree
        (name,) = folders
        if name.casefold() in _PART_OF:
            return tree
        inner = tree.below(name)
        inner_folders, inner_files = inner.listing()
        if any(map(decode.is_image_name, inner_files)):
            return inner if _has_table(inner) else tree
        # In Tiny ImageNet a class holds a folder `images`.
        if inner_folders == ["images"] and not inner_files:
            return tree
        tree = inner


def _has_table(tree: Tree) -> bool:
    """Whether a table that tells the classes of images in one folder lies there."""
    return (
        tree.has(_VAL_TABLE)
        or tree.has(_DEVKIT_ARCHIVE)
        or any(tree.has(folder + _DEVKIT_TABLE) for folder in _DEVKIT_FOLDERS)
    )


def _labelled(tree: Tree, say: Say) -> LabelledImages:
    """Images with a table of labels, in the folder or around it; or class folders."""
    tree = _entered(tree)
    if tree.has(_TINY_TABLE):
        return _tiny_imagenet(tree)
    folders, files = tree.listing()
    flat = sorted(filter(decode.is_image_name, files), key=decode.natural_key)
    # A folder of classes stays one, whatever table or stray picture lies in it or around it.
    if any(tree.has_images(name) for name in folders):
        if flat and (table := _table(tree, (tree,))) is not None:
            return _from_table(tree, flat, *table)
        return _class_folders(tree, say)
    if not flat and not any(tree.has(name) for name in (_VAL_TABLE, _DEVKIT_TABLE)):
        return _class_folders(tree, say)  # which explains that there are no images
    if (table := _table(tree, (tree, tree.parent()))) is not None:
        return _from_table(tree, flat, *table)
    raise DataError(
        f"{len(flat)} images lie directly in `{tree.root}` with nothing that tells their classes",
        hint=f"put them into one folder per class, or beside them `{_VAL_TABLE}` with lines "
        f"`name index`, or `{_DEVKIT_TABLE}` and `meta.mat` of ImageNet's devkit",
    )


def _made(
    tree: Tree, classes: Iterable[str], names: Iterable[str], labels: Iterable[int], layout: str
) -> LabelledImages:
    if tree.kind != "folder":
        layout += f" in a {tree.kind}"
    numbers = np.array(list(labels), dtype=np.int64)
    return LabelledImages(tree.root, tuple(classes), tuple(names), numbers, None, layout, tree)


def _class_folders(tree: Tree, say: Say) -> LabelledImages:
    """A folder per class, each with images at any depth; classes sorted by name."""
    passed = Passed()
    folders, files = tree.listing("", passed)
    found = {name: list(tree.images(name, passed)) for name in sorted(folders)}
    classes = [name for name in found if found[name]]
    if not classes:
        raise DataError(
            f"no images in class folders below `{tree.root}`: found {len(found)} folders"
            + (f" ({', '.join(list(found)[:5])})" if found else "")
            + (f"; {passed}" if str(passed) else ""),
            hint="expected is one folder per class with image files in it, such as "
            f"`{tree.root / 'cat' / '1.jpg'}`",
        )
    if empty := [f"`{name}`" for name in found if not found[name]]:
        say(f"passed over: {len(empty)} folders without images, {_some(empty)}, in `{tree.root}`")
    if beside := sum(map(decode.is_image_name, files)):
        say(f"not used: {beside} images beside the class folders in `{tree.root}`")
    if str(passed):
        say(f"{passed}, in `{tree.root}`")
    if len(classes) == 1:
        say(f"`{tree.root}` holds one class alone, `{classes[0]}`")
    names = [name for of_class in classes for name in found[of_class]]
    labels = np.repeat(range(len(classes)), [len(found[name]) for name in classes])
    return _made(tree, classes, names, labels, "class folders")


# --- tables of labels

_VAL_TABLE = "val.txt"
_DEVKIT_TABLE = "ILSVRC2012_validation_ground_truth.txt"
_DEVKIT_FOLDERS = ("", "ILSVRC2012_devkit_t12/data/", "devkit/data/")
_DEVKIT_ARCHIVE = "ILSVRC2012_devkit_t12.tar.gz"
_LARGEST_DEVKIT_FILE = 16 * 1024**2  # unpacked; the devkit's have less than a megabyte
_IMAGENET_TAR = "ILSVRC2012_img_val.tar"
_TINY_TABLE = "val_annotations.txt"


def _table(tree: Tree, places: tuple[Tree, ...]) -> tuple[list[str], str] | None:
    """The lines of the labels' table, and its path for messages."""
    for place in places:
        if place.has(_VAL_TABLE):
            return _lines(place, _VAL_TABLE), str(place.root / _VAL_TABLE)
    if (found := _from_devkit(places, _DEVKIT_TABLE)) is not None:
        content, path = found
        return _decoded(content, path), path
    return None


def _lines(tree: Tree, file: str) -> list[str]:
    return _decoded(tree.read(file), str(tree.root / file))


def _decoded(content: bytes, path: str) -> list[str]:
    """The lines of a table of file names."""
    try:
        return text.decoded(content, names=True).removesuffix("\n").split("\n")
    except ValueError as error:
        raise DataError(f"`{path}` cannot be read: {error}") from None


def _from_devkit(places: tuple[Tree, ...], name: str) -> tuple[bytes, str] | None:
    """A file of ImageNet's devkit, unpacked or not, and its path for messages."""
    for place in places:
        for folder in _DEVKIT_FOLDERS:
            if place.has(folder + name):
                return place.read(folder + name), str(place.root / folder / name)
        if place.has(_DEVKIT_ARCHIVE):
            path = place.root / _DEVKIT_ARCHIVE
            try:
                content = io.BytesIO(place.read(_DEVKIT_ARCHIVE))
                with Tar.open(fileobj=content, mode="r:gz") as archive:
                    for member in archive:
                        if member.isreg() and PurePosixPath(member.name).name == name:
                            file = archive.extractfile(member)
                            assert file is not None  # of a regular file
                            found = file.read(_LARGEST_DEVKIT_FILE + 1)
                            if len(found) > _LARGEST_DEVKIT_FILE:
                                raise DataError(
                                    f"`{path / member.name}` has more than "
                                    f"{_LARGEST_DEVKIT_FILE:,} bytes"
                                )
                            return found, str(path / member.name)
            except (OSError, *ARCHIVE_ERRORS) as error:
                raise DataError(f"`{path}` is damaged: {error}") from None
    return None


def _from_table(tree: Tree, flat: list[str], lines: list[str], path: str) -> LabelledImages:
    """ImageNet's images in one folder, by names with indices or by the devkit's numbers.

    Args:
        tree: with the images.
        flat: the images that lie directly in it.
        lines: of the table.
        path: of the table, for messages.
    """
    rows = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if all(line.isdecimal() for _, line in rows):
        pairs = _devkit_pairs(tree, flat, rows, path)
        layout = "the devkit's ground truth"
    else:
        pairs = [_val_pair(tree, number, line, path) for number, line in rows]
        layout = _VAL_TABLE
    wnids = imagenet_wnids()
    names = [name for name, _ in pairs]
    found = list(tree.images()) if any("/" in name for name in names) else flat
    _check_table(found, names, tree.root, path)
    return _made(tree, wnids, names, (index for _, index in pairs), layout)


def _check_table(found: Iterable[str], named: list[str], root: Path, path: str) -> None:
    """Raises DataError for an image that has no label, and for one that has two."""
    listed = set(named)
    if unlabelled := [name for name in found if name not in listed]:
        raise DataError(
            f"{len(unlabelled)} images in `{root}` have no label in `{path}`, first "
            f"`{unlabelled[0]}`"
        )
    if len(listed) < len(named):
        twice = Counter(named).most_common(1)[0][0]
        raise DataError(f"`{path}` names `{twice}` more than once")


def _val_pair(tree: Tree, number: int, line: str, path: str) -> tuple[str, int]:
    """Name and class index in sorted WNID order, of a line "name index"."""
    name, index = (line.rsplit(maxsplit=1) + [""])[:2]
    if not index.isdecimal() or int(index) >= len(imagenet()):
        raise DataError(
            f"line {number} of `{path}` is `{line}`; expected are lines `name index` with an index "
            "from 0 to 999 in the order of the sorted WNIDs, or the devkit's numbers alone"
        )
    return name.removeprefix(f"{tree.root.name}/"), int(index)


def _devkit_pairs(
    tree: Tree, flat: list[str], rows: list[tuple[int, str]], path: str
) -> list[tuple[str, int]]:
    """Names and class indices: entry i is of ILSVRC2012_val_{i+1:08d}, in the devkit's order."""
    meta = _from_devkit((tree, tree.parent()), "meta.mat")
    if meta is None:
        raise DataError(
            f"`{path}` counts the classes in the devkit's own order, which only the devkit's "
            "`meta.mat` translates, and that is not beside it",
            hint=f"put `meta.mat`, or `{_DEVKIT_ARCHIVE}` as it is, into `{tree.parent().root}`",
        )
    wnid_of = _devkit_classes(*meta)
    wnids = imagenet_wnids()
    index_of = {wnid: index for index, wnid in enumerate(wnids)}
    on_disk = {PurePosixPath(name).stem: name for name in flat}
    pairs = []
    for position, (number, line) in enumerate(rows, start=1):
        wnid = wnid_of.get(int(line), "")
        if wnid not in index_of:
            raise DataError(
                f"line {number} of `{path}` is `{line}`, which `{meta[1]}` gives no class of "
                "ImageNet's 1000 for"
            )
        stem = f"ILSVRC2012_val_{position:08d}"
        pairs.append((on_disk.get(stem, f"{stem}.JPEG"), index_of[wnid]))
    return pairs


def _devkit_classes(content: bytes, path: str) -> dict[int, str]:
    """WNID by ILSVRC2012_ID, of the classes that are leaves; higher ones have numbers too."""
    try:
        synsets = np.atleast_1d(_load_mat(content, path)["synsets"])
        return {
            int(row["ILSVRC2012_ID"]): str(row["WNID"])
            for row in synsets
            if int(row["num_children"]) == 0
        }
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"`{path}` is not the devkit's: {error!r}") from None


def _load_mat(content: bytes, path: str) -> dict[str, Any]:
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise DataError(
            f"reading `{path}` needs SciPy, which is not installed",
            hint="pip install 'cvt-cli[devkit]'",
        ) from None
    try:
        return loadmat(io.BytesIO(content), squeeze_me=True)  # type: ignore[no-any-return]
    except Exception as error:  # scipy raises many kinds for what is no .mat file
        raise DataError(f"`{path}` cannot be read as a .mat file: {error}") from None


def _tiny_imagenet(tree: Tree) -> LabelledImages:
    """``images/`` and lines of name, WNID and a box, separated by tabs."""
    path = str(tree.root / _TINY_TABLE)
    names, wnids = [], []
    for number, line in enumerate(_lines(tree, _TINY_TABLE), start=1):
        if not line.strip():
            continue
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0].strip()
        if not wnid:
            raise DataError(f"line {number} of `{path}` is `{line}`; expected are `name<TAB>wnid…`")
        names.append(f"images/{name}")
        wnids.append(wnid)
    _check_table(tree.images("images"), names, tree.root, path)
    classes = sorted(set(wnids))
    index_of = {wnid: index for index, wnid in enumerate(classes)}
    labels = (index_of[wnid] for wnid in wnids)
    return _made(tree, classes, names, labels, "Tiny ImageNet's annotations")


# --- sets that are known by name


def _open_known(
    name: str, split: Split, data_dir: Path, offline: bool, say: Say | None
) -> LabelledImages:
    known = _KNOWN[name]
    root = _known_root(known, data_dir)
    if root is None and not offline:
        _fetch(name, data_dir, say or _nobody)
        root = _known_root(known, data_dir)
    if root is None:
        folders = " and ".join(f"`{folder}`" for folder in sorted(known.folders, key=len))
        plural = "s" if len(known.folders) > 1 else ""
        raise DataError(
            f"`{name}` is not in `{data_dir}`: looked for the folder{plural} {folders}",
            hint=f"say where it is with --data-dir, or fetch it with torchvision: "
            f'python -c "import torchvision; '
            f"torchvision.datasets.{known.torchvision}('{data_dir}', download=True)\"",
        )
    if name in ("oxford-iiit-pet", "flowers102"):
        reader = _pets if name == "oxford-iiit-pet" else _flowers
        if (found := reader(Folder(root), split)) is None:
            raise DataError(
                f"`{root}` is not the whole of `{name}` as torchvision lays it out",
                hint="remove it and fetch it again",
            )
        return found
    return _open_split(Folder(root), split, _once(say))


def _known_root(known: _KnownSet, data_dir: Path) -> Path | None:
    places = (data_dir / folder for folder in reversed(known.folders))
    return next((place for place in places if place.is_dir()), None)


def _fetch(name: str, data_dir: Path, say: Say) -> None:
    """Have torchvision fetch a set, which is then in ``data_dir`` whole or not at all.

    Raises:
        DataError: the server or the disk fails, or what comes is damaged.
        CvtError: the folder cannot be written to.
    """
    import http.client
    import socket
    import sys
    import tempfile

    known = _KNOWN[name]
    if name == "flowers102":
        _require_scipy(name)
    with files.locked(data_dir / f".{name}.lock", f"fetching {name}", say):
        if _known_root(known, data_dir) is not None:
            return  # another process was faster
        say(f"fetching {name}, about {known.size}, from {known.host} into `{data_dir}`")
        previous = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_FETCH_TIMEOUT_SEC)
        try:
            # Beside its place: torchvision takes a set that was unpacked in part for the whole.
            with (
                tempfile.TemporaryDirectory(prefix=f".{name}-", dir=data_dir) as folder,
                redirect_stdout(sys.stderr),  # where some versions of torchvision talk
            ):
                datasets = importlib.import_module("torchvision.datasets")
                getattr(datasets, known.torchvision)(folder, download=True)
                (Path(folder) / known.folders[0]).rename(data_dir / known.folders[0])
        except (OSError, http.client.HTTPException, *ARCHIVE_ERRORS) as error:
            # A wrong hash is a RuntimeError; ARCHIVE_ERRORS has it.
            reason = str(getattr(error, "reason", None) or error or type(error).__name__)
            if isinstance(error, RuntimeError):
                reason = f"what came is not the published file: {reason}"
            raise DataError(
                f"`{name}` cannot be fetched from {known.host}: {reason}",
                hint="try again later, or put it there by hand: as "
                f"`{data_dir / known.folders[0]}`, laid out as torchvision.datasets."
                f"{known.torchvision} does",
            ) from None
        finally:
            socket.setdefaulttimeout(previous)


def _require_scipy(name: str) -> None:
    """Before 345 MB are fetched that nothing here could read."""
    if importlib.util.find_spec("scipy") is None:
        raise DataError(
            f"`{name}` needs SciPy, which is not installed", hint="pip install 'cvt-cli[devkit]'"
        )


def _pets(tree: Tree, split: Split) -> LabelledImages | None:
    """Oxford-IIIT Pet: lines of image, class from 1, species and breed."""
    file = f"annotations/{'trainval' if split == 'train' else 'test'}.txt"
    if not (tree.has(file) and tree.has_folder("images")):
        return None
    names, labels = [], []
    breeds: dict[int, str] = {}
    for number, line in enumerate(_lines(tree, file), start=1):
        image, label = (line.split() + ["", ""])[:2]
        if not label.isdecimal():
            raise DataError(
                f"line {number} of `{tree.root / file}` is `{line}`; expected are an image and its "
                "class, counted from 1"
            )
        names.append(f"images/{image}.jpg")
        labels.append(int(label) - 1)
        breeds[int(label) - 1] = image.rpartition("_")[0]
    if sorted(breeds) != list(range(len(breeds))):
        raise DataError(f"the classes in `{tree.root / file}` are not numbered from 1 on")
    # As torchvision writes them: `american_bulldog` is "American Bulldog".
    classes = [
        " ".join(part.title() for part in breeds[label].split("_")) for label in sorted(breeds)
    ]
    return _made(tree, classes, names, labels, "Oxford-IIIT Pet's annotations")


def _flowers(tree: Tree, split: Split) -> LabelledImages | None:
    """Flowers-102: numbers of the images of each part, and the class from 1 of each image."""
    if not (tree.has("setid.mat") and tree.has("imagelabels.mat") and tree.has_folder("jpg")):
        return None
    parts = ("trnid", "valid") if split == "train" else ("tstid",)
    path = str(tree.root / "setid.mat")
    try:
        ids = _load_mat(tree.read("setid.mat"), path)
        numbers = np.concatenate([np.atleast_1d(ids[part]) for part in parts])
        table = _load_mat(tree.read("imagelabels.mat"), str(tree.root / "imagelabels.mat"))
        of_all = np.atleast_1d(table["labels"]).astype(np.int64) - 1
        labels = [int(of_all[number - 1]) for number in numbers]
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"`{tree.root}` does not hold Flowers-102's tables: {error!r}") from None
    names = [f"jpg/image_{number:05d}.jpg" for number in numbers]
    return _made(tree, _flower_names(), names, labels, "Flowers-102's tables")


def _flower_names() -> list[str]:
    datasets = importlib.import_module("torchvision.datasets")
    # Older versions of torchvision do not name them.
    return list(getattr(datasets.Flowers102, "classes", map(str, range(1, 103))))


_CIFAR10_FOLDER = "cifar-10-batches-py"
_CIFAR100_FOLDER = "cifar-100-python"


def _cifar10(tree: Tree, split: Split) -> LabelledImages | None:
    train = [f"data_batch_{number}" for number in range(1, 6)]
    files = train if split == "train" else ["test_batch"]
    return _cifar(tree, _CIFAR10_FOLDER, files, "labels", "batches.meta", "label")


def _cifar100(tree: Tree, split: Split) -> LabelledImages | None:
    return _cifar(tree, _CIFAR100_FOLDER, [split], "fine_labels", "meta", "fine_label")


def _cifar(
    tree: Tree, folder: str, files: list[str], key: str, meta: str, name_key: str
) -> LabelledImages | None:
    if tree.root.name != folder:
        if not tree.has_folder(folder):
            return None
        tree = tree.below(folder)
    names: list[str] = []
    labels: list[int] = []
    pixels = []
    try:
        classes = tuple(_load_arrays(tree, meta)[f"{name_key}_names"])
        if not all(isinstance(name, str) for name in classes):
            raise ValueError("the names of its classes are no texts")
        for file in files:
            batch = _load_arrays(tree, file)
            own, rows = list(batch[key]), np.asarray(batch["data"])
            if len(own) != len(rows) or rows.dtype != np.uint8:
                raise ValueError(f"{len(own)} labels of {len(rows)} images of {rows.dtype}")
            if not all(type(label) is int and 0 <= label < len(classes) for label in own):
                raise ValueError(f"labels that are not from 0 to {len(classes) - 1}")
            names += [f"{file}:{position}" for position in range(len(own))]
            labels += own
            pixels.append(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        found = _made(tree, classes, names, labels, "CIFAR's own files")
        return replace(found, pixels=np.concatenate(pixels))
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"`{tree.root}` does not hold CIFAR's arrays: {error!r}") from None


class _ArrayUnpickler(pickle.Unpickler):
    """Reads CIFAR's files, which are pickles; builds NumPy arrays and nothing else."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"asks for `{module}.{name}`")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _load_arrays(tree: Tree, file: str) -> dict[str, Any]:
    path = tree.root / file
    try:
        content = _ArrayUnpickler(io.BytesIO(tree.read(file)), encoding="latin1").load()
    except (
        *(pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError),
        *(MemoryError, OverflowError, RecursionError),  # of what a pickle asks for
    ) as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"`{path}` is not one of CIFAR's files, nothing was run: {reason}"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"`{path}` is not one of CIFAR's files: it holds no dictionary")
    return content


# --- the data's classes as the model's


def match_classes(
    classes: tuple[str, ...], labels: Labels, label_map: Path | None = None
) -> tuple[NDArray[np.int64], str]:
    """The model's class index of each of a data set's classes, (n,), and how they were matched.

    First by the model's own class names, since a model that was fine-tuned on folders named 0, 1,
    10, … counts them in that order; then, for ImageNet models only, by WNID or as numbers.

    Args:
        classes: of the data.
        labels: of the model.
        label_map: a JSON object that says it for every class of the data, by the model's class
            name, WNID or index; nothing else is then tried.

    Raises:
        DataError: none of these fits every class, a name means two of the model's classes, or the
            map is unreadable or does not fit the data or the model.
    """
    if label_map is not None:
        return _by_map(classes, labels, label_map), f"the label map `{label_map}`"
    ways: list[tuple[str, list[str | None]]] = [("the model's class names", [*labels.names])]
    if labels.wnids is not None:
        ways.append(("WordNet identifiers", list(labels.wnids)))
    if labels.are_imagenet:
        ways.append(("class numbers", [str(index) for index in range(len(labels))]))
    for how, keys in ways:
        index = _positions(keys)
        if index.keys() >= set(classes):
            if ambiguous := [name for name in classes if index[name] is None]:
                raise DataError(
                    f"class `{ambiguous[0]}` names more than one class of the model",
                    hint="say which is meant with `--label-map FILE`",
                )
            return np.array([index[name] for name in classes], dtype=np.int64), how
    own = set(labels.names)
    missing = [name for name in classes if name not in own]
    raise DataError(
        f"{len(missing)} of {len(classes)} classes of the data are not among the model's "
        f"{len(labels)}: {_some(missing)}",
        hint=f"the model's classes are {_some(labels.names)}; give `--label-map FILE`, a JSON "
        "object of the data's classes with the model's class name, WNID or index for each",
    )


def _positions(keys: Sequence[str | None]) -> dict[str, int | None]:
    """Where each stands; None for one that stands in several places."""
    found: dict[str, int | None] = {}
    for position, key in enumerate(keys):
        if key:  # a class without a WNID has none
            found[key] = None if key in found else position
    return found


def _by_map(classes: tuple[str, ...], labels: Labels, path: Path) -> NDArray[np.int64]:
    try:
        table = text.read_json(path, unique=True)
    except OSError as error:
        raise DataError(f"cannot read the label map `{path}`: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"the label map `{path}` is not JSON: {error}") from None
    if not isinstance(table, dict):
        raise DataError(f"the label map `{path}` is not a JSON object of the data's classes")
    # Entries for other classes are harmless: one map serves a set and parts of it.
    if missing := [name for name in classes if name not in table]:
        raise DataError(f"the label map `{path}` lacks classes of the data: {_some(missing)}")
    keys = [_positions(labels.names), _positions(labels.wnids or ())]
    indices = [
        _class_index(table[name], labels, keys, f"of `{name}` in `{path}`") for name in classes
    ]
    return np.array(indices, dtype=np.int64)


def _class_index(
    value: object, labels: Labels, keys: list[dict[str, int | None]], where: str
) -> int:
    """A model's class by its name, WNID (``keys``) or index."""
    if type(value) is int and 0 <= value < len(labels):  # True is an int too
        return value
    for positions in keys:
        if isinstance(value, str) and value in positions:
            if (index := positions[value]) is not None:
                return index
            raise DataError(
                f"`{value}` {where} names more than one class of the model",
                hint="write its index, a number without quotes",
            )
    raise DataError(
        f"{json.dumps(value)} {where} is no class of the model; accepted are its class names, "
        f"an index from 0 to {len(labels) - 1}" + (", and WNIDs" if labels.wnids else "")
    )


def _some(names: Iterable[str]) -> str:
    """The first five."""
    shown = list(names)
    return ", ".join(shown[:5]) + (", …" if len(shown) > 5 else "")
