"""What is known of images beside their class: ReaL's labels, and the group that each is of."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cvt_cli.base import text
from cvt_cli.base.errors import DataError
from cvt_cli.base.text import counted
from cvt_cli.images.table_files import refuse_repeated

_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")


def real_labels(names: Sequence[str], content: Any, where: str) -> dict[str, list[int]]:
    """ReaL's labels of each image, by file name (Beyer et al. 2020, arXiv 2006.07159).

    Args:
        names: of the images.
        content: of ``real.json``: for image i of ImageNet's validation set, a list of classes.
        where: it was read, for messages.

    Raises:
        DataError: it is no such list, or an image has lost the name that says which it is.
    """
    if not isinstance(content, list) or not all(isinstance(labels, list) for labels in content):
        raise DataError(
            f"`{where}` is not ReaL's real.json: expected is a list of lists of class indices"
        )
    found = {}
    for name in names:
        match = _VALIDATION_NAME.search(name.rpartition("/")[2])
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(content):
            raise DataError(
                f"image `{name}` does not say which of ImageNet's validation images it is",
                hint="ReaL's labels need the original file names, ILSVRC2012_val_00000001.JPEG …",
            )
        found[name] = content[number - 1]
    return found


def read_groups(lines: Iterator[Mapping[str, str]], where: str) -> dict[str, str]:
    """The group of each path, from a table with the columns ``path`` and ``group``.

    Raises:
        DataError: a column is missing, or a path has no group or two.
    """
    table: dict[str, str] = {}
    for row in lines:
        if row.get("path") is None or row.get("group") is None:
            raise DataError(f"`{where}` needs the columns `path` and `group`")
        path, group = row["path"], row["group"]
        if not group.strip():
            raise DataError(f"`{where}` has no group for `{path}`")
        if table.setdefault(path, group) != group:
            raise DataError(f"`{where}` has two groups for `{path}`: `{table[path]}` and `{group}`")
    return table


def groups_of(table: Mapping[str, str], names: Sequence[str], where: str) -> dict[str, str]:
    """The group of each image, from such a table.

    Raises:
        DataError: an image is not in it.
    """
    if missing := [name for name in names if name not in table]:
        raise DataError(
            f"{len(missing)} of {counted(len(names), 'image')} without a group in `{where}`, "
            f"such as `{missing[0]}`",
            hint="paths are relative to the data's folder, as --predictions writes them",
        )
    return {name: table[name] for name in names}


def read_groups_file(path: Path) -> dict[str, str]:
    """The group of each path, from a CSV file.

    Raises:
        DataError: it cannot be read, or as `read_groups`.
    """
    try:
        lines = io.StringIO(text.read_text(path, names=True), newline="")
        reader = csv.DictReader(lines)
        refuse_repeated(reader.fieldnames or (), path)
        return read_groups(reader, str(path))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"cannot read `{path}`: {error}") from None


def read_real_file(path: Path) -> Any:
    """The content of ``real.json``, which `real_labels` checks.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return text.read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read `{path}`: {error}") from None
