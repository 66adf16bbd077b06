"""Sets that are known by name and that torchvision can fetch; Oxford-IIIT Pet and Flowers-102."""

import importlib.util
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cvt_cli.base import files, locks, places
from cvt_cli.base.errors import DataError, UsageError
from cvt_cli.base.package import installing
from cvt_cli.base.progress import Say
from cvt_cli.datasets.label_tables import lines_of, load_mat
from cvt_cli.datasets.labelled import LabelledImages, Split, made
from cvt_cli.images.archives import ARCHIVE_ERRORS
from cvt_cli.images.trees import Tree


def pets(tree: Tree, split: Split, say: Say) -> LabelledImages | None:
    """Oxford-IIIT Pet: lines of image, class from 1, species and breed."""
    file = f"annotations/{'trainval' if split == 'train' else 'test'}.txt"
    if not (tree.has(file) and tree.has_folder("images")):
        return None
    names, labels = [], []
    breeds: dict[int, str] = {}
    for number, line in enumerate(lines_of(tree, file), start=1):
        image, label = (line.split() + ["", ""])[:2]
        if not label.isdecimal():
            raise DataError(
                f"line {number} of `{tree.root / file}` is `{line}`; expected are an image name "
                "and its class, numbered from 1"
            )
        names.append(f"images/{image}.jpg")
        labels.append(int(label) - 1)
        breeds[int(label) - 1] = image.rpartition("_")[0]
    if sorted(breeds) != list(range(len(breeds))):
        raise DataError(f"the classes in `{tree.root / file}` are not numbered from 1 without gaps")
    # As torchvision writes them: `american_bulldog` is "American Bulldog".
    classes = [
        " ".join(part.title() for part in breeds[label].split("_")) for label in sorted(breeds)
    ]
    return made(tree, classes, names, labels, "Oxford-IIIT Pet's annotations")


def flowers(tree: Tree, split: Split, say: Say) -> LabelledImages | None:
    """Flowers-102: numbers of the images of each part, and the class from 1 of each image."""
    if not (tree.has("setid.mat") and tree.has("imagelabels.mat") and tree.has_folder("jpg")):
        return None
    parts = ("trnid", "valid") if split == "train" else ("tstid",)
    path = str(tree.root / "setid.mat")
    try:
        ids = load_mat(tree.read("setid.mat"), path)
        numbers = np.concatenate([np.atleast_1d(ids[part]) for part in parts])
        table = load_mat(tree.read("imagelabels.mat"), str(tree.root / "imagelabels.mat"))
        of_all = np.atleast_1d(table["labels"]).astype(np.int64) - 1
        labels = [int(of_all[number - 1]) for number in numbers]
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"`{tree.root}` does not hold Flowers-102's tables: {error!r}") from None
    names = [f"jpg/image_{number:05d}.jpg" for number in numbers]
    return made(tree, _flower_names(), names, labels, "Flowers-102's tables")


def _flower_names() -> list[str]:
    datasets = importlib.import_module("torchvision.datasets")
    # Older versions of torchvision do not name them.
    return list(getattr(datasets.Flowers102, "classes", map(str, range(1, 103))))


# --- finding and fetching


@dataclass(frozen=True)
class _KnownSet:
    """A set that torchvision can fetch."""

    folders: tuple[str, ...]  # where it is looked for below the data folder; first, where it lands
    torchvision: str  # the class there
    size: str
    host: str
    reader: Callable[[Tree, Split, Say], LabelledImages | None] | None = None
    """The one that must know it; by default any that knows the layout of what lies there."""


KNOWN = {
    "cifar10": _KnownSet(
        ("cifar-10-batches-py", "cifar10"), "CIFAR10", "170 MB", "www.cs.toronto.edu"
    ),
    "cifar100": _KnownSet(
        ("cifar-100-python", "cifar100"), "CIFAR100", "169 MB", "www.cs.toronto.edu"
    ),
    "oxford-iiit-pet": _KnownSet(
        ("oxford-iiit-pet",), "OxfordIIITPet", "811 MB", "www.robots.ox.ac.uk", pets
    ),
    "flowers102": _KnownSet(
        ("flowers-102",), "Flowers102", "345 MB", "www.robots.ox.ac.uk", flowers
    ),
    "imagenette": _KnownSet(("imagenette2",), "Imagenette", "1.6 GB", "s3.amazonaws.com"),
}

KNOWN_SETS = tuple(KNOWN)
"""Sets that ``--data`` takes by name; a name wins over a folder unless written ``./name``."""


def as_data(place: str | Path) -> str:
    """What a program gives, as ``--data`` takes it; a Path is never a known set."""
    if isinstance(place, Path) and str(place) in KNOWN_SETS:
        return os.path.join(os.curdir, place)
    return places.expanded(str(place))


_FETCH_TIMEOUT_SEC = 30.0
"""For which a server may be silent; torchvision itself would wait for ever."""


def check_data_dir(data: str, asked: Path | None) -> None:
    """Raises UsageError if ``--data-dir`` was given for what is no known set."""
    if asked is not None and data not in KNOWN_SETS:
        raise UsageError(f"--data-dir is only for known data sets, and `{data}` is not one")


def found_or_fetched(name: str, data_dir: Path, offline: bool, say: Say) -> Path:
    """The folder of a known set.

    Raises:
        DataError: it is not there, and cannot or must not be fetched.
    """
    known = KNOWN[name]
    root = _known_root(known, data_dir)
    if root is None and not offline:
        _fetch(name, data_dir, say)
        root = _known_root(known, data_dir)
    if root is None:
        folders = " and ".join(f"`{folder}`" for folder in sorted(known.folders, key=len))
        plural = "s" if len(known.folders) > 1 else ""
        raise DataError(
            f"`{name}` is not in `{data_dir}`: looked for the folder{plural} {folders}",
            hint=f"give its place with --data-dir, or download it with torchvision: "
            f'python -c "import torchvision; '
            f"torchvision.datasets.{known.torchvision}('{data_dir}', download=True)\"",
        )
    return root


def _known_root(known: _KnownSet, data_dir: Path) -> Path | None:
    places = (data_dir / folder for folder in reversed(known.folders))
    return next((place for place in places if os.path.isdir(place)), None)


def _fetch(name: str, data_dir: Path, say: Say) -> None:
    """Have torchvision fetch a set, which is then in ``data_dir`` whole or not at all.

    Raises:
        DataError: the server or the disk fails, or what comes is damaged.
        CvtError: the folder cannot be written to.
    """
    import http.client
    import socket
    import sys

    known = KNOWN[name]
    if name == "flowers102":
        _require_scipy(name)
    with locks.locked(data_dir / f".{name}.lock", f"downloading {name}", say):
        if _known_root(known, data_dir) is not None:
            return  # another process was faster
        say(f"downloading {name}, about {known.size}, from {known.host} into `{data_dir}`")
        previous = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_FETCH_TIMEOUT_SEC)
        try:
            # Beside its place: torchvision takes a set that was unpacked in part for the whole.
            with (
                files.workplace(data_dir / name) as folder,
                redirect_stdout(sys.stderr),  # where some versions of torchvision talk
            ):
                datasets = importlib.import_module("torchvision.datasets")
                getattr(datasets, known.torchvision)(folder, download=True)
                (folder / known.folders[0]).rename(data_dir / known.folders[0])
        except (OSError, http.client.HTTPException, *ARCHIVE_ERRORS) as error:
            # A wrong hash is a RuntimeError; ARCHIVE_ERRORS has it.
            reason = str(getattr(error, "reason", None) or error or type(error).__name__)
            if isinstance(error, RuntimeError):
                reason = f"the download is not the published file: {reason}"
            raise DataError(
                f"`{name}` cannot be downloaded from {known.host}: {reason}",
                hint="try again later, or put the files there yourself: "
                f"`{data_dir / known.folders[0]}`, as torchvision.datasets."
                f"{known.torchvision} stores them",
            ) from None
        finally:
            socket.setdefaulttimeout(previous)


def _require_scipy(name: str) -> None:
    """Before 345 MB are fetched that nothing here could read."""
    if importlib.util.find_spec("scipy") is None:
        raise DataError(f"`{name}` needs SciPy, which is not installed", hint=installing("devkit"))
