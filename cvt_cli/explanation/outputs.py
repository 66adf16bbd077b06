"""Explanations in files: a picture for each image, and the raw numbers."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import files, text
from cvt_cli.explanation import drawing
from cvt_cli.explanation.explain import Explanation
from cvt_cli.prediction.whole_files import WholeFile

_MOST_BYTES = 200
"""Of an image's name in that of its picture; a name of a file may have 255."""


class Pictures:
    """A PNG for each image: the photograph, each map, and both over each other.

    Args:
        place: a ``.png`` for one image, or a folder, which is made.
        overwrite: replace pictures of these names, as of a process that writes there meanwhile.
    """

    def __init__(self, place: Path, overwrite: bool = False) -> None:
        self._place, self._taken, self._overwrite = place, set[str](), overwrite

    def write(self, one: Explanation) -> Path | None:
        """The file that was written; None for an image that could not be read.

        Raises:
            CvtError: it cannot be written.
        """
        if one.error is not None:
            return None
        path = self._place if is_picture(self._place) else self._place / self._name(one.path)
        files.refuse_replacing([path], self._overwrite)
        with files.replacing(path) as temporary:
            temporary.write_bytes(drawing.png(one.panel()))
        return path

    def _name(self, of: str) -> str:
        """The image's own name, with a number where another image has it already."""
        stem = text.as_utf8(PurePath(of.rpartition("://")[2]).stem).strip("-.") or "image"
        stem = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in stem)
        stem = stem.encode()[:_MOST_BYTES].decode(errors="ignore")
        name, number = f"{stem}.png", 1
        while name.casefold() in self._taken:
            number += 1
            name = f"{stem}-{number}.png"
        self._taken.add(name.casefold())
        return name


def is_picture(place: Path) -> bool:
    """Whether one picture is meant, and no folder of them."""
    return place.suffix.lower() == ".png"


class Numbers(WholeFile):
    """The raw maps as an ``.npz``, float32, written one image after the other.

    ``I/METHOD/CLASS/map`` is the map of image I at the network's resolution, ``…/grid`` where its
    cells lie in the input (stride and offset in pixels), ``…/photo`` the same map on the photograph
    with NaN where the network does not see it. Attention, which is of no class, has no CLASS, and
    ``I/attention/heads`` (blocks, heads, rows, columns). ``paths`` and ``conditions`` say of what.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any]) -> None:
        self._conditions = conditions
        self._paths: list[str] = []
        super().__init__(path)

    def _begin(self) -> None:
        self._archive = self._stack.enter_context(zipfile.ZipFile(self._temporary, "w"))

    def _add(self, one: Explanation) -> None:
        number = len(self._paths)
        self._paths.append(text.as_utf8(one.path))
        written = set[str]()
        for each in one.explained:
            for found in each.maps:
                of_class = "" if found.heads is not None else f"/{each.prediction.index}"
                against = each.against and f"-{each.against.index}"
                name = f"{number}/{found.method}{of_class}{(of_class and against) or ''}"
                if name in written:
                    continue
                written.add(name)
                self._write(f"{name}/map", found.values)
                self._write(f"{name}/grid", np.array([found.grid.stride, found.grid.offset]))
                self._write(f"{name}/photo", one.laid(found))
                if found.heads is not None and found.heads_grid is not None:
                    grid = found.heads_grid
                    self._write(f"{name}/heads", found.heads)
                    self._write(f"{name}/heads_grid", np.array([grid.stride, grid.offset]))

    def _finish(self) -> None:
        self._write("paths", np.array(self._paths))
        self._write("conditions", np.array(json.dumps(self._conditions)))
        self._archive.close()

    def _write(self, name: str, values: NDArray[Any]) -> None:
        member = zipfile.ZipInfo(f"{name}.npy")
        member.compress_type = zipfile.ZIP_DEFLATED
        with self._archive.open(member, "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.asarray(values, order="C"), allow_pickle=False)
