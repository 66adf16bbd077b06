"""Features of images in a file: .npz or .safetensors."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import files, text
from cvt_cli.base.errors import UsageError
from cvt_cli.checkpoints import headers
from cvt_cli.prediction.answers import Answer
from cvt_cli.prediction.whole_files import WholeFile

_PART_BYTES = 4 * 1024**2

SUFFIXES = (".npz", ".safetensors")


class Features(WholeFile):
    """``features`` (n, C) in float32 with the images' ``paths``, as .npz or .safetensors.

    The rows wait in a file beside it, so that memory does not grow with them. Safetensors hold no
    text: there the paths are JSON in the metadata.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any]) -> None:
        self._safetensors = path.suffix.lower() == ".safetensors"
        self._conditions = conditions
        self._paths: list[str] = []
        self._width = 0
        super().__init__(path)

    def _begin(self) -> None:
        self._rows_path = self._stack.enter_context(files.workplace(self._path)) / "rows"
        self._rows = self._stack.enter_context(self._rows_path.open("wb"))

    def _add(self, answer: Answer) -> None:  # an image that could not be read has no row
        if answer.features is not None:
            self._width = len(answer.features)
            self._rows.write(answer.features.tobytes())
            self._paths.append(text.as_utf8(answer.path))

    def _finish(self) -> None:
        self._rows.flush()
        shape = (len(self._paths), self._width)
        features: NDArray[np.float32] = np.zeros(shape, np.float32)
        if self._paths:
            features = np.memmap(self._rows_path, np.float32, "r", shape=shape)
        conditions = json.dumps(self._conditions)
        if self._safetensors:
            from safetensors import SafetensorError
            from safetensors.numpy import save_file

            metadata = {"paths": json.dumps(self._paths), "conditions": conditions}
            mode = self._temporary.stat().st_mode  # as the umask says; save_file takes 0600
            try:
                save_file({"features": features}, self._temporary, metadata)
            except SafetensorError as error:  # a full disk, say
                raise OSError(str(error)) from error
            files.permit(self._temporary, mode)
            headers.order_metadata(self._temporary)
        else:
            with zipfile.ZipFile(self._temporary, "w") as archive:
                for name, array in (("features", features), ("conditions", np.array(conditions))):
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                        np.lib.format.write_array(file, array, allow_pickle=False)
                _write_texts(archive, "paths", self._paths)


def _write_texts(archive: zipfile.ZipFile, name: str, texts: Sequence[str]) -> None:
    """Write an array of texts to an .npz, a part at a time and compressed.

    Each takes as much room in it as the longest, so that one long name would make it large.
    """
    kind = np.dtype(f"<U{max(map(len, texts), default=0) or 1}")
    member = zipfile.ZipInfo(f"{name}.npy")
    member.compress_type = zipfile.ZIP_DEFLATED
    at_once = max(1, _PART_BYTES // kind.itemsize)
    with archive.open(member, "w", force_zip64=True) as file:
        about = {"descr": kind.str, "fortran_order": False, "shape": (len(texts),)}
        np.lib.format.write_array_header_1_0(file, about)
        for start in range(0, len(texts), at_once):
            file.write(np.array(texts[start : start + at_once], kind).tobytes())


def check_suffix(path: Path) -> None:
    """Raises UsageError for a file that features cannot be written as."""
    if path.suffix.lower() not in SUFFIXES:
        accepted = " and ".join(f"`{suffix}`" for suffix in SUFFIXES)
        raise UsageError(f"features cannot be written as `{path}`; accepted are {accepted}")
