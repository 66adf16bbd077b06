"""Tables that lie beside class folders: whether they say something else of the images there."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cvt_cli.base.errors import CvtError
from cvt_cli.images import columns, finding
from cvt_cli.images.table_files import is_table, open_table

_TABLES = 8
"""Of more, the others are not looked into."""

_FIRST, _EVERY = 4000, 8
"""Rows of a table, and which of them are looked at: it may be sorted by class."""

_CELLS = 400_000
"""That are read of a table at most: one of pixels has thousands of columns."""


_OF_ANSWERS = {"predictions", "score_1"}
"""Columns of what cvt wrote of images, which is no word on what they are."""


def that_tell(
    folder: Path, tables: Sequence[Path], images: Mapping[str, Sequence[str]]
) -> list[Path]:
    """The tables whose rows name images in class folders, and say something else of them.

    A column names the images if half of its values do, and another one has several values. If one
    has a value for each folder's images, the table says what the folders say. Answers of cvt say
    nothing.

    Args:
        folder: in which the class folders are; tables around it are asked too.
        tables: beside the class folders. Such as cannot be read say nothing.
        images: the names of those in each class folder, which begin with its name.
    """
    read = {path: dict(_columns(path)) for path in [*tables, *_around(folder)][:_TABLES]}
    wanted = {_stem(v) for found in read.values() for values in found.values() for v in values}
    by_stem: dict[str, list[str]] = {}
    for names in images.values() if wanted else ():
        for name in names:
            if (stem := _stem(name)) in wanted:
                by_stem.setdefault(stem, []).append(name)
    return [path for path, found in read.items() if found and _tell(found, by_stem)]


def _around(folder: Path) -> list[Path]:
    around = folder.parent if folder.name not in ("", "..") else folder.absolute().parent
    try:
        return sorted(path for path in around.iterdir() if is_table(path.name))
    except OSError:
        return []


def _columns(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The values of some rows, column by column, but of those known as groups or the like."""
    try:
        table = open_table(path)
        names = [name for name in table.columns if name not in table.holding_bytes]
        if not _OF_ANSWERS.isdisjoint(names):
            return
        most = max(1, min(_FIRST, _CELLS // max(1, len(names))))
        piece = next(table.pieces(names, most=most), None)
    except CvtError:
        return
    if piece is not None:
        for name in names:
            if columns.role_of(name) not in ("split", "group", "weight"):
                values = piece.columns[name]
                yield name, [str(value) for value in values[:: min(_EVERY, len(values) // 100 + 1)]]


def _tell(found: Mapping[str, Sequence[str]], by_stem: Mapping[str, Sequence[str]]) -> bool:
    for naming, values in found.items():
        folders = [_folder(value, by_stem.get(_stem(value), ())) for value in values]
        if 2 * folders.count(None) > len(values):
            continue
        several = False
        for name, others in found.items():
            if name != naming:
                pairs = {(a, b) for a, b in zip(folders, others, strict=True) if a is not None}
                of_folders, of_values = ({pair[side] for pair in pairs} for side in (0, 1))
                if len(of_folders) == len(of_values) == len(pairs) > 1:
                    return False
                several |= len(of_values) > 1
        return several
    return False


def _stem(name: str) -> str:
    """A file's name without its folders and its suffix."""
    base = name.replace("\\", "/").rpartition("/")[2]
    return base.rpartition(".")[0] if finding.is_image_name(base) else base


def _folder(value: str, images: Sequence[str]) -> str | None:
    """The folder of the one image that a value names, with or without folders and suffix."""
    value = f"/{value.removeprefix('./')}".replace("\\", "/")
    with_suffix, found = finding.is_image_name(value[1:]), None
    for name in images:
        image = f"/{name}" if with_suffix else f"/{name.rpartition('.')[0]}"
        if image.endswith(value) or value.endswith(image):
            if found is not None:
                return None
            found = name.partition("/")[0]
    return found
