"""CIFAR-10 and CIFAR-100 in their own files, which are pickles: arrays of pixels and labels."""

import io
import pickle
from dataclasses import replace
from typing import Any

import numpy as np

from cvt_cli.base.errors import DataError
from cvt_cli.base.progress import Say
from cvt_cli.datasets.labelled import LabelledImages, Split, made
from cvt_cli.images.trees import Tree

_CIFAR10_FOLDER = "cifar-10-batches-py"
_CIFAR100_FOLDER = "cifar-100-python"


def cifar10(tree: Tree, split: Split, say: Say) -> LabelledImages | None:
    """CIFAR-10 as its authors publish it, in six files."""
    train = [f"data_batch_{number}" for number in range(1, 6)]
    files = train if split == "train" else ["test_batch"]
    return _cifar(tree, _CIFAR10_FOLDER, files, "labels", "batches.meta", "label")


def cifar100(tree: Tree, split: Split, say: Say) -> LabelledImages | None:
    """CIFAR-100 as its authors publish it, with its hundred classes."""
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
            raise ValueError("its class names are not text")
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
        found = made(tree, classes, names, labels, "CIFAR's own files")
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
            f"`{path}` is not one of CIFAR's files, and nothing in it was run: {reason}"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"`{path}` is not one of CIFAR's files: it does not hold a dictionary")
    return content
