"""Tables that say which class each image has: lines of text, and MATLAB's .mat files."""

import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cvt_cli.base import text
from cvt_cli.base.errors import DataError
from cvt_cli.base.package import installing
from cvt_cli.base.text import counted
from cvt_cli.images.trees import Tree


def lines_of(tree: Tree, file: str) -> list[str]:
    return decoded(tree.read(file), str(tree.root / file))


def decoded(content: bytes, path: str) -> list[str]:
    """The lines of a table of file names."""
    try:
        return text.decoded(content, names=True).removesuffix("\n").split("\n")
    except ValueError as error:
        raise DataError(f"`{path}` cannot be read: {error}") from None


def check_table(found: Iterable[str], named: list[str], root: Path, path: str) -> None:
    """Raises DataError for an image that has no label, and for one that has two."""
    listed = set(named)
    if unlabelled := [name for name in found if name not in listed]:
        raise DataError(
            f"{counted(len(unlabelled), 'image')} in `{root}` without a label in `{path}`, first "
            f"`{unlabelled[0]}`"
        )
    if len(listed) < len(named):
        twice = Counter(named).most_common(1)[0][0]
        raise DataError(f"`{path}` lists `{twice}` more than once")


def load_mat(content: bytes, path: str) -> dict[str, Any]:
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise DataError(
            f"reading `{path}` needs SciPy, which is not installed",
            hint=installing("devkit"),
        ) from None
    try:
        return loadmat(io.BytesIO(content), squeeze_me=True)  # type: ignore[no-any-return]
    except Exception as error:  # scipy raises many kinds for what is no .mat file
        raise DataError(f"`{path}` cannot be read as a .mat file: {error}") from None
