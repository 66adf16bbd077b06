"""Labelled images: class folders, and CIFAR as torchvision lays it out on disk.

A root may hold ``train/`` beside ``val/`` or ``test/``, each with a folder per class; or the class
folders themselves; or ``cifar-10-batches-py`` / ``cifar-100-python``.
"""

import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvt_cli import images
from cvt_cli.errors import DataError
from cvt_cli.labels import Labels

Split = Literal["train", "test"]

KNOWN_SETS = ("cifar10", "cifar100")
"""Sets that ``--data`` takes by name; a name wins over a folder unless written ``./name``."""


@dataclass(frozen=True)
class LabelledImages:
    """Images with the class that each belongs to; decoded when asked for."""

    root: Path
    classes: tuple[str, ...]  # names, in the order that `labels` counts
    names: tuple[str, ...]  # one per image: its path below `root`, or file and position in it
    labels: NDArray[np.int64]  # (n,) index into `classes`
    pixels: NDArray[np.uint8] | None = None  # (n, H, W, 3) where the set is held in memory

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int, exif: bool) -> Image.Image:
        """One image as RGB.

        Raises:
            ImageError: it cannot be read.
        """
        if self.pixels is not None:
            return Image.fromarray(self.pixels[index])
        return images.load(self.root / self.names[index], exif)

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


def open_dataset(data: str, split: Split, data_dir: Path) -> LabelledImages:
    """The images to train on, or those to evaluate on, of a known set or a folder.

    Args:
        data: a name in `KNOWN_SETS` or a path.
        split: "train" takes ``train/``, "test" takes ``val/`` or else ``test/``; a folder that has
            neither is taken as it is.
        data_dir: where known sets are looked for.

    Raises:
        DataError: nothing there, or not laid out as this module says.
    """
    if data in KNOWN_SETS:
        root = _known_root(data, data_dir)
    else:
        root = Path(data).expanduser()
        if not root.is_dir():
            kind = "is not a folder" if root.exists() else "does not exist"
            raise DataError(
                f"`{data}` {kind}; accepted are a folder of class folders and the names "
                + ", ".join(f"`{name}`" for name in KNOWN_SETS)
            )
    for reader in (_cifar10, _cifar100):
        if (found := reader(root, split)) is not None:
            return found
    for name in ("train",) if split == "train" else ("val", "test"):
        if (root / name).is_dir():
            return _class_folders(root / name)
    if split == "test" and (root / "train").is_dir():
        raise DataError(
            f"`{root}` has `train` but neither `val` nor `test` to evaluate on",
            hint=f"name the folder itself: --data {root / 'train'}",
        )
    return _class_folders(root)


def _known_root(name: str, data_dir: Path) -> Path:
    original = {"cifar10": _CIFAR10_FOLDER, "cifar100": _CIFAR100_FOLDER}[name]
    for root in (data_dir / name, data_dir / original):
        if root.is_dir():
            return root
    raise DataError(
        f"`{name}` is not in `{data_dir}`: looked for the folders `{name}` and `{original}`",
        hint=f"say where it is with --data-dir, or fetch it with torchvision: "
        f'python -c "import torchvision; '
        f"torchvision.datasets.{name.upper()}('{data_dir}', download=True)\"",
    )


def _class_folders(root: Path) -> LabelledImages:
    """A folder per class, each with images at any depth; classes sorted by name."""
    classes = tuple(
        sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    )
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = [path.relative_to(root).as_posix() for path in images.images_in(root / name)]
        names += found
        labels += [label] * len(found)
    if not names:
        raise DataError(
            f"no images in class folders below `{root}`: found {len(classes)} folders"
            + (f" ({', '.join(classes[:5])})" if classes else ""),
            hint="expected is one folder per class with image files in it, such as "
            f"`{root / 'cat' / '1.jpg'}`",
        )
    return LabelledImages(root, classes, tuple(names), np.array(labels, dtype=np.int64))


_CIFAR10_FOLDER = "cifar-10-batches-py"
_CIFAR100_FOLDER = "cifar-100-python"


def _cifar10(root: Path, split: Split) -> LabelledImages | None:
    folder = root if root.name == _CIFAR10_FOLDER else root / _CIFAR10_FOLDER
    if not folder.is_dir():
        return None
    train = [f"data_batch_{number}" for number in range(1, 6)]
    return _cifar(
        folder, train if split == "train" else ["test_batch"], "labels", "batches.meta", "label"
    )


def _cifar100(root: Path, split: Split) -> LabelledImages | None:
    folder = root if root.name == _CIFAR100_FOLDER else root / _CIFAR100_FOLDER
    if not folder.is_dir():
        return None
    return _cifar(folder, [split], "fine_labels", "meta", "fine_label")


def _cifar(folder: Path, files: list[str], key: str, meta: str, name_key: str) -> LabelledImages:
    names: list[str] = []
    labels: list[int] = []
    pixels = []
    try:
        classes = tuple(_load_arrays(folder / meta)[f"{name_key}_names"])
        for file in files:
            batch = _load_arrays(folder / file)
            names += [f"{file}:{position}" for position in range(len(batch[key]))]
            labels += batch[key]
            pixels.append(np.asarray(batch["data"]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        return LabelledImages(
            folder, classes, tuple(names), np.array(labels, np.int64), np.concatenate(pixels)
        )
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"`{folder}` does not hold CIFAR's arrays: {error!r}") from None


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


def _load_arrays(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except OSError as error:
        raise DataError(f"cannot read `{path}`: {error.strerror}") from None
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError) as error:
        raise DataError(f"`{path}` is not one of CIFAR's files, nothing was run: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"`{path}` is not one of CIFAR's files: it holds no dictionary")
    return content


def match_classes(classes: tuple[str, ...], labels: Labels) -> tuple[NDArray[np.int64], str]:
    """The model's class index of each of a data set's classes, and how they were matched.

    First by the model's own class names; then, for ImageNet models only, by WNID or as numbers.

    Raises:
        DataError: none of these fits every class, or a name means two of the model's classes.
    """
    ways = [("the model's class names", list(labels.names))]
    if labels.wnids is not None:
        ways.append(("WordNet identifiers", list(labels.wnids)))
        ways.append(("class numbers", [str(index) for index in range(len(labels))]))
    for how, keys in ways:
        if set(classes) <= set(keys):
            if ambiguous := [name for name in classes if keys.count(name) > 1]:
                raise DataError(f"class `{ambiguous[0]}` names more than one class of the model")
            return np.array([keys.index(name) for name in classes], dtype=np.int64), how
    missing = [name for name in classes if name not in labels.names]
    raise DataError(
        f"{len(missing)} of {len(classes)} classes of the data are not among the model's "
        f"{len(labels)}: {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}",
        hint=f"the model's classes are {', '.join(labels.names[:5])}"
        f"{', …' if len(labels) > 5 else ''}; rename the folders so, or choose another model",
    )
