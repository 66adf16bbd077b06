"""ImageNet's validation images in one folder, by a table or the devkit; and Tiny ImageNet's."""

import io
from pathlib import PurePosixPath

import numpy as np

from cvt_cli.base.errors import DataError
from cvt_cli.base.progress import Say
from cvt_cli.datasets.label_tables import check_table, decoded, lines_of, load_mat
from cvt_cli.datasets.labelled import LabelledImages, Split, made
from cvt_cli.images import finding
from cvt_cli.images.archives import ARCHIVE_ERRORS
from cvt_cli.images.tars import Tar
from cvt_cli.images.trees import Tree
from cvt_cli.spec.labels import imagenet, imagenet_wnids

VAL_TABLE = "val.txt"
DEVKIT_TABLE = "ILSVRC2012_validation_ground_truth.txt"
_DEVKIT_FOLDERS = ("", "ILSVRC2012_devkit_t12/data/", "devkit/data/")
_DEVKIT_ARCHIVE = "ILSVRC2012_devkit_t12.tar.gz"
_LARGEST_DEVKIT_FILE = 16 * 1024**2  # unpacked; the devkit's have less than a megabyte
VALIDATION_TAR = "ILSVRC2012_img_val.tar"
_TINY_TABLE = "val_annotations.txt"


def flat_images(tree: Tree, split: Split, say: Say) -> LabelledImages | None:
    """Images in one folder, with a table of their classes there or, of lone images, around it."""
    folders, files = tree.listing()
    flat = sorted(filter(finding.is_image_name, files), key=finding.natural_key)
    # A folder of classes stays one, whatever table or stray picture lies in it or around it.
    if any(tree.has_images(name) for name in folders):
        places: tuple[Tree, ...] = (tree,) if flat else ()
    elif flat or any(tree.has(name) for name in (VAL_TABLE, DEVKIT_TABLE)):
        places = (tree, tree.parent())
    else:
        places = ()
    table = _table(places)
    return None if table is None else _from_table(tree, flat, *table)


def _table(places: tuple[Tree, ...]) -> tuple[list[str], str] | None:
    """The lines of the labels' table, and its path for messages."""
    for place in places:
        if place.has(VAL_TABLE):
            return lines_of(place, VAL_TABLE), str(place.root / VAL_TABLE)
    if (found := _from_devkit(places, DEVKIT_TABLE)) is not None:
        content, path = found
        return decoded(content, path), path
    return None


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
                                    f"`{path / member.name}` is too large: more than "
                                    f"{_LARGEST_DEVKIT_FILE:,} bytes"
                                )
                            return found, str(path / member.name)
            except (OSError, *ARCHIVE_ERRORS) as error:
                raise DataError(f"`{path}` is damaged: {error}") from None
    return None


def _from_table(tree: Tree, flat: list[str], lines: list[str], path: str) -> LabelledImages:
    """ImageNet's images in one folder, by names with indices or by the devkit's numbers, with the
    classes that these have.

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
        layout = VAL_TABLE
    wnids = imagenet_wnids()
    names = [name for name, _ in pairs]
    found = list(tree.images()) if any("/" in name for name in names) else flat
    check_table(found, names, tree.root, path)
    place = {index: code for code, index in enumerate(sorted({index for _, index in pairs}))}
    classes = [wnids[index] for index in place]
    return made(tree, classes, names, (place[index] for _, index in pairs), layout)


def _val_pair(tree: Tree, number: int, line: str, path: str) -> tuple[str, int]:
    """Name and class index in sorted WNID order, of a line "name index"."""
    name, index = (line.rsplit(maxsplit=1) + [""])[:2]
    if not index.isdecimal() or int(index) >= len(imagenet()):
        raise DataError(
            f"line {number} of `{path}` is `{line}`; expected are lines `name index` with an index "
            "from 0 to 999 in the order of the sorted WordNet IDs, or only the devkit's numbers"
        )
    return name.removeprefix(f"{tree.root.name}/"), int(index)


def _devkit_pairs(
    tree: Tree, flat: list[str], rows: list[tuple[int, str]], path: str
) -> list[tuple[str, int]]:
    """Names and class indices: entry i is of ILSVRC2012_val_{i+1:08d}, in the devkit's order."""
    meta = _from_devkit((tree, tree.parent()), "meta.mat")
    if meta is None:
        raise DataError(
            f"`{path}` numbers the classes in the devkit's own order; only the devkit's "
            "`meta.mat` translates it, and it is not there",
            hint=f"put `meta.mat`, or `{_DEVKIT_ARCHIVE}` (packed) into `{tree.parent().root}`",
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
                f"line {number} of `{path}` is `{line}`, which in `{meta[1]}` is none of "
                "ImageNet's 1000 classes"
            )
        stem = f"ILSVRC2012_val_{position:08d}"
        pairs.append((on_disk.get(stem, f"{stem}.JPEG"), index_of[wnid]))
    return pairs


def _devkit_classes(content: bytes, path: str) -> dict[int, str]:
    """WNID by ILSVRC2012_ID, of the classes that are leaves; higher ones have numbers too."""
    try:
        synsets = np.atleast_1d(load_mat(content, path)["synsets"])
        return {
            int(row["ILSVRC2012_ID"]): str(row["WNID"])
            for row in synsets
            if int(row["num_children"]) == 0
        }
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"`{path}` is not the file of the devkit: {error!r}") from None


def tiny_imagenet(tree: Tree, split: Split, say: Say) -> LabelledImages | None:
    """``images/`` and lines of name, WNID and a box, separated by tabs."""
    if not tree.has(_TINY_TABLE):
        return None
    path = str(tree.root / _TINY_TABLE)
    names, wnids = [], []
    for number, line in enumerate(lines_of(tree, _TINY_TABLE), start=1):
        if not line.strip():
            continue
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0].strip()
        if not wnid:
            raise DataError(f"line {number} of `{path}` is `{line}`; expected is `name<TAB>wnid…`")
        names.append(f"images/{name}")
        wnids.append(wnid)
    check_table(tree.images("images"), names, tree.root, path)
    classes = sorted(set(wnids))
    index_of = {wnid: index for index, wnid in enumerate(classes)}
    labels = (index_of[wnid] for wnid in wnids)
    return made(tree, classes, names, labels, "Tiny ImageNet's annotations")


def has_table(tree: Tree) -> bool:
    """Whether a table that tells the classes of images in one folder lies there."""
    return (
        tree.has(VAL_TABLE)
        or tree.has(_DEVKIT_ARCHIVE)
        or any(tree.has(folder + DEVKIT_TABLE) for folder in _DEVKIT_FOLDERS)
    )
