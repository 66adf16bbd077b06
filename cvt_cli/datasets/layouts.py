"""Opening labelled images, however they are laid out.

A place is a folder, a .zip or an uncompressed .tar (`images.trees`). It may hold ``train/``
beside ``val/`` or ``test/`` (`parts.PARTS`), or be one of these itself; a lone folder in which
everything lies is entered. Understood are

    <class>/…                       class folders
    *.JPEG with val.txt             lines "name index", 0-based in sorted WNID order (ImageNet)
    ILSVRC2012_val_*.JPEG           with ILSVRC2012_validation_ground_truth.txt and meta.mat
    ILSVRC2012_img_val.tar          with ILSVRC2012_devkit_t12.tar.gz, as they are published
    images/ with val_annotations.txt                  Tiny ImageNet
    cifar-10-batches-py, cifar-100-python             CIFAR's own files
    images/ with annotations/{trainval,test}.txt      Oxford-IIIT Pet
    jpg/ with setid.mat and imagelabels.mat           Flowers-102

or it is a table, .csv, .tsv, .jsonl or .parquet, whose rows name images (`table_sets`).
"""

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from cvt_cli.base import places, text, torchrun
from cvt_cli.base.errors import DataError, UsageError
from cvt_cli.base.progress import Progress, Say, silent, unheard
from cvt_cli.base.text import counted
from cvt_cli.datasets import cifar, imagenet, torchvision_sets
from cvt_cli.datasets.classes import match_classes
from cvt_cli.datasets.groups import from_paths
from cvt_cli.datasets.labelled import LabelledImages, Split, made
from cvt_cli.datasets.parts import PARTS_OF_SPLIT, beside, entered, parts_of, unlike_classes
from cvt_cli.datasets.table_sets import Told, open_part, parts_of_table
from cvt_cli.datasets.tables_beside import that_tell
from cvt_cli.datasets.torchvision_sets import KNOWN, KNOWN_SETS
from cvt_cli.images import columns, finding
from cvt_cli.images.finding import Passed
from cvt_cli.images.table_files import is_table
from cvt_cli.images.trees import Folder, Tree, open_tree
from cvt_cli.spec.labels import Labels


def open_dataset(
    data: str,
    split: Split,
    data_dir: Path,
    *,
    offline: bool = True,
    say: Say | None = None,
    told: Told = Told(),  # noqa: B008  # it is frozen
    progress: Progress = silent,
    only_test: bool = False,
) -> LabelledImages:
    """The images to train on, or those to evaluate on, of a known set, a folder or an archive.

    Args:
        data: a name in `KNOWN_SETS` or a path.
        split: "train" takes ``train/``, "test" takes ``val/`` or else ``test/`` (`parts.PARTS` has
            their other names); a place that has no parts is taken as it is. Of Pets and Flowers,
            "train" is all that is not test.
        data_dir: where known sets are looked for, and put when they are fetched.
        offline: a known set that is not there is not fetched.
        say: told, before a set is fetched, what, how large, from where and into which folder; and
            what lies there and is not used.
        told: what the columns of a table are, and which images are of one group.
        progress: told how far a table is read.
        only_test: of the split "test", take ``test/`` also where there is ``val/``, and nothing
            else.

    Raises:
        DataError: nothing there, not laid out as this module says, not to be fetched, without the
            part that is wanted, or a folder that cannot be read.
        UsageError: what was told has no place in such data.
    """
    say = _once(say)
    check_told(data, told)
    if data in KNOWN and os.path.isdir(data):
        say(f"not used: the folder `{data}` here, as a known set has this name; write ./{data}")
    if _is_table(data):
        path = Path(places.expanded(data))
        wanted_parts = ("test",) if only_test else PARTS_OF_SPLIT[split]
        found = open_part(path, wanted_parts, told, say, progress)
        parts = parts_of_table(path, told)
        if only_test and "test" not in parts:
            raise _no_test(path, parts)
        if split == "test" and not only_test and {"val", "test"} <= set(parts):
            say(f"not used: the rows of `test` in `{path}`; --split test takes them")
        if found is None:
            there = " and ".join(f"`{part}`" for part in parts)
            wanted = "`train` to train on" if split == "train" else "`val` nor `test` to evaluate"
            raise DataError(
                f"`{path}` has rows of {there} but {'no' if split == 'train' else 'neither'} "
                f"{wanted}",
                hint="--columns split= takes all rows together",
            )
        return _grouped(found, told, say)
    if only_test and data not in KNOWN:  # whose split "test" is no other
        return _grouped(_test_of(_place(data), say), told, say)
    return _grouped(_open_place(data, split, data_dir, offline, say), told, say)


def check_told(data: str, told: Told) -> None:
    """Raises UsageError for what is told of a table, where the data are none."""
    columns.parse(told.columns)
    for name, value in (
        ("--columns", told.columns),
        ("--images", told.images),
        ("--separator", told.separator),
    ):
        if value is not None and not _is_table(data):
            raise UsageError(f"{name}: it is of a table of images, and `{data}` is none")


def _open_place(data: str, split: Split, data_dir: Path, offline: bool, say: Say) -> LabelledImages:
    if data in KNOWN:
        root = torchvision_sets.found_or_fetched(data, data_dir, offline, say)
        reader = KNOWN[data].reader or _read
        if (found := reader(Folder(root), split, say)) is None:
            raise DataError(
                f"`{root}` does not hold all of `{data}`, as torchvision stores it",
                hint="remove it and download it again",
            )
        return found
    return _read(_place(data), split, say)


def _place(data: str) -> Tree:
    path = Path(places.expanded(data))
    if not os.path.exists(path):
        raise DataError(
            f"`{data}` does not exist; accepted are a folder, a .zip, a .tar, a table (.csv, .tsv, "
            ".jsonl, .parquet), or one of " + ", ".join(f"`{name}`" for name in KNOWN_SETS)
        )
    return entered(open_tree(path))


def _test_of(tree: Tree, say: Say) -> LabelledImages:
    """``test/``, or what a set in the form that is published calls so."""
    for reader in _OF_A_SPLIT:
        if (found := reader(tree, "test", say)) is not None:
            return found
    parts = parts_of(tree)
    if "test" not in parts:
        raise _no_test(tree.root, list(parts.values()))
    return _read_part(tree.below(parts["test"]), "test", say)


def _no_test(place: Path, parts: Sequence[str]) -> DataError:
    there = " and ".join(f"`{part}`" for part in parts)
    return DataError(
        f"--split test: `{place}` has {f'{there} but ' if there else ''}no part `test`",
        hint="leave out --split, or name the images to measure on",
    )


def _grouped(images: LabelledImages, told: Told, say: Say) -> LabelledImages:
    """The images with the groups that their paths tell, where they are to be told so."""
    if told.group_by is not None and images.groups is None:
        groups, names, first = from_paths(images.names, told.group_by)
        shown = ", ".join(f"`{name}` is of `{group}`" for name, group in first)
        say(f"--group-by: {counted(len(names), 'group')} of images; {shown}")
        images = replace(images, groups=groups, group_names=names, grouped_by=told.group_by)
    if alike := text.alike(images.group_names):
        these = " and ".join(f"`{name}`" for name in alike[0])
        more = f"; so do {len(alike) - 1} more" if len(alike) > 1 else ""
        say(f"{these} differ in {text.LOOKS} alone, and are taken as different groups{more}")
    return images


def open_given(
    data: str,
    part: Literal["val", "test"],
    training: LabelledImages,
    say: Say | None = None,
    told: Told = Told(),  # noqa: B008  # it is frozen
) -> LabelledImages | None:
    """The images of a part that the user gives beside ``train``.

    Those of ``val`` have the classes of the training images. None where the data has no such part,
    as the known sets.

    Raises:
        DataError: ``val`` has images of a class that the training images do not have.
    """
    say = _once(say)
    if _is_table(data):
        path = Path(places.expanded(data))
        if not {"train", part} <= set(parts_of_table(path, told)):
            return None
        found = open_part(path, [part], told, unheard)
        assert found is not None
        where = f"to `{path}` as `train`"
    else:
        tree = _given(data, part)
        if tree is None:
            return None
        found = _read_part(tree, "test", say)
        where = f"to `{training.root}`"
    found = _grouped(found, told, unheard)
    if part == "test":
        return found
    try:
        index, _ = match_classes(found.classes, Labels(training.classes))
    except DataError as error:
        raise DataError(
            f"{error}",
            hint=f"add images of these classes {where}, or remove them from `{found.root}`",
        ) from None
    if not found.several:
        return replace(found, classes=training.classes, labels=index[found.labels])
    labels = np.zeros((len(found), len(training.classes)), np.uint8)
    labels[:, index] = found.labels
    return replace(found, classes=training.classes, labels=labels)


def _is_table(data: str) -> bool:
    path = places.expanded(data)
    return data not in KNOWN and is_table(path) and not os.path.isdir(path)


def pass_over_validation(data: str, say: Say, told: Told = Told()) -> None:  # noqa: B008
    """Say that ``val`` beside ``train`` is not used, if there is one."""
    if _is_table(data):
        path = Path(places.expanded(data))
        unused = f"`val` of `{path}`" if "val" in parts_of_table(path, told) else None
    else:
        tree = _given(data, "val")
        unused = None if tree is None else f"`{tree.root}`"
    if unused:
        say(f"not used: {unused}; validation images are held out from the training images")


def gives(data: str, part: Literal["val", "test"], told: Told) -> bool:
    """Whether the user gives a part beside ``train``; the known sets do not."""
    if _is_table(data):
        return {"train", part} <= set(parts_of_table(Path(places.expanded(data)), told))
    return _given(data, part) is not None


def _given(data: str, part: str) -> Tree | None:
    """The folder of a part beside ``train``."""
    if data in KNOWN:
        return None
    tree = entered(open_tree(Path(places.expanded(data))))
    parts = parts_of(tree)
    return tree.below(parts[part]) if {"train", part} <= parts.keys() else None


def _once(say: Say | None) -> Say:
    """What tells the user what was found; where several processes open the data, only one does."""
    return say if say is not None and torchrun.rank() == 0 else unheard


# --- the readers of layouts


def parted(tree: Tree, split: Split, say: Say) -> LabelledImages | None:
    """``train/``, ``val/`` or ``test/``, laid out as a reader below `parted` knows it."""
    parts = parts_of(tree)
    for part in PARTS_OF_SPLIT[split]:
        if part in parts:
            passed = Passed()
            for name in tree.listing()[1]:
                passed.add_file(name)
            if str(passed):
                say(f"{passed}, in `{tree.root}`")
            used = [parts[other] for other in ("train", "val", part) if other in parts]
            if unused := beside(tree, used):
                both = split == "test" and {"val", "test"} <= parts.keys()
                hint = f"; --split test takes `{parts['test']}`" if both else ""
                say(f"not used: {text.some(unused)} beside `{tree.root / parts[part]}`{hint}")
            return _read_part(tree.below(parts[part]), split, say)
    if not parts:
        return None
    there = " and ".join(f"`{name}`" for name in parts.values())
    wanted = "`train` to train on" if split == "train" else "`val` nor `test` to evaluate on"
    own = tree.root / next(iter(parts.values()))
    raise DataError(
        f"`{tree.root}` has {there} but {'no' if split == 'train' else 'neither'} {wanted}",
        hint=f"name the folder itself: {shlex.quote(str(own))}"
        if isinstance(tree, Folder)
        else "unpack it and name the folder itself",
    )


def imagenet_tar(tree: Tree, split: Split, say: Say) -> LabelledImages | None:
    """ImageNet's validation images in the archive that is published, where no ``val/`` lies."""
    if split == "test" and isinstance(tree, Folder) and tree.has(imagenet.VALIDATION_TAR):
        if "val" not in parts_of(tree):
            return _read_part(open_tree(tree.path / imagenet.VALIDATION_TAR), split, say)
    return None


def class_folders(tree: Tree, split: Split, say: Say) -> LabelledImages:
    """A folder per class, each with images at any depth; classes sorted by name."""
    passed = Passed()
    folders, files = tree.listing("", passed)
    found = {name: list(tree.images(name, passed)) for name in sorted(folders)}
    classes = [name for name in found if found[name]]
    loose = sum(map(finding.is_image_name, files))
    for name in files:
        passed.add_file(name)
    in_place = isinstance(tree, Folder)  # tables are read from there alone
    tables = sorted(tree.root / name for name in files if is_table(name) and in_place)
    if loose and not classes:
        raise DataError(
            f"{counted(loose, 'image')} directly in `{tree.root}`, and nothing says of which class",
            hint=_named(tables, "if a table has their classes, name it")
            if tables
            else "put them into one folder per class, or put beside them "
            f"`{imagenet.VAL_TABLE}` with lines `name index`, or `{imagenet.DEVKIT_TABLE}` and "
            "`meta.mat` of ImageNet's devkit",
        )
    if not classes:
        raise DataError(
            f"no images in class folders below `{tree.root}`: found {counted(len(found), 'folder')}"
            + (f" ({', '.join(list(found)[:5])})" if found else "")
            + (f"; {passed}" if str(passed) else ""),
            hint=_named(tables, "if a table has the images, name it")
            if tables
            else "expected is one folder per class with image files in it, such as "
            f"`{tree.root / 'cat' / '1.jpg'}`",
        )
    images = {name: found[name] for name in classes}
    telling = that_tell(tree.root, tables, images) if in_place else []
    if parts := unlike_classes(images, bool(telling)):
        these, (why, certain) = text.some([f"`{name}`" for name in classes]), parts
        if certain:
            raise DataError(
                f"{these} in `{tree.root}` look like parts of a set, not like classes: they {why}",
                hint=_part_of(tree, classes, telling),
            )
        say(f"{these} in `{tree.root}` {why}; they are taken as the classes")
    if empty := [f"`{name}`" for name in found if not found[name]]:
        named = text.some(empty)
        say(f"skipped: {counted(len(empty), 'folder')} without images, {named}, in `{tree.root}`")
    if loose:
        say(f"not used: {counted(loose, 'image')} beside the class folders in `{tree.root}`")
    if unused := telling or tables:
        these = text.some(f"`{table}`" for table in unused)
        if telling:
            these += f", which {'names' if len(unused) == 1 else 'name'} images there; if it has "
            these += "their classes, name the table"
        say(f"not used for the classes of the folders in `{tree.root}`: {these}")
    if str(passed):
        say(f"{passed}, in `{tree.root}`")
    if len(classes) == 1:
        say(f"`{tree.root}` holds only one class, `{classes[0]}`")
    for alike in text.alike(classes):
        named = " and ".join(f"`{name}` ({len(found[name])})" for name in alike)
        say(
            f"{named} in `{tree.root}` differ in {text.LOOKS} alone, and are taken as different "
            "classes"
        )
    names = [name for of_class in classes for name in found[of_class]]
    labels = np.repeat(range(len(classes)), [len(found[name]) for name in classes])
    return made(tree, classes, names, labels, "class folders")


def _part_of(tree: Tree, folders: Sequence[str], tables: Sequence[Path]) -> str:
    """A hint on folders that are parts by other names, or whose classes a table may have."""
    rename = "call them `train`, `val` and `test`"
    if not isinstance(tree, Folder):
        return rename
    inner = [tree.root / name / file for name in folders for file in tree.listing(name)[1]]
    if tables := tables or [path for path in inner if is_table(path.name)]:
        return _named(tables, "if a table has the classes, name it")
    first = next((name for name in folders if "train" in name.casefold()), folders[0])
    return f"{rename}, or name one of them, such as {shlex.quote(str(tree.root / first))}"


def _named(tables: Sequence[Path], advice: str) -> str:
    """A hint with a table's path; of several, none is all of the data."""
    first = shlex.quote(str(min(tables)))
    if len(tables) == 1:
        return f"{advice}: {first}"
    return (
        f"{advice}, such as {first}: there are {len(tables)}, of which one is read at a time; join "
        "parts of one set into one file before"
    )


Reader = Callable[[Tree, Split, Say], LabelledImages | None]
"""Gives the images of a split where a tree is laid out as the reader knows it; else None.

It raises DataError where they are damaged, and tells `Say` what lies there and is not used.
"""

_OF_A_SPLIT = (cifar.cifar10, cifar.cifar100, torchvision_sets.pets, torchvision_sets.flowers)
"""Those that find the images of a split in files of their own."""

READERS: tuple[Reader, ...] = (
    *_OF_A_SPLIT,
    imagenet_tar,
    parted,
    # What stands from here on reads the folder of one part too.
    imagenet.tiny_imagenet,
    imagenet.flat_images,
    class_folders,  # the last, since it says what is wrong where nothing was understood
)
"""How a place can be laid out; the first reader that gives images counts.

A new layout is one function, and its name here: above `parted` where it finds the images of a split
itself, below where it is given the folder of a part.
"""


def _read(tree: Tree, split: Split, say: Say) -> LabelledImages:
    return _first_of(READERS, tree, split, say)


def _read_part(tree: Tree, split: Split, say: Say) -> LabelledImages:
    return _first_of(READERS[READERS.index(parted) + 1 :], entered(tree, True), split, say)


def _first_of(readers: tuple[Reader, ...], tree: Tree, split: Split, say: Say) -> LabelledImages:
    for reader in readers:
        if (found := reader(tree, split, say)) is not None:
            return found
    raise AssertionError("the last reader gives images or raises")
