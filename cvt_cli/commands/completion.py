"""What a shell completes a word to (``cvt --install-completion``): names that are known, and files.

Where nothing is returned, the shell completes files itself.
"""

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cvt_cli.spec import published, variants

Complete = Callable[[str], list[str]]
"""From the beginning of a word to what it may become."""


def models(incomplete: str) -> list[str]:
    """Known checkpoints, runs and files."""
    return [*_beginning(incomplete, published.CHECKPOINTS), *runs(incomplete), *_files(incomplete)]


def networks(incomplete: str) -> list[str]:
    """Variants, and models."""
    return [*variant_names(incomplete), *models(incomplete)]


def variant_names(incomplete: str) -> list[str]:
    return _beginning(incomplete, variants.VARIANTS)


def runs(incomplete: str) -> list[str]:
    """Folders of training runs in ``runs``, the newest first."""
    found = [path for path in Path("runs").glob("*") if (path / "plan.json").is_file()]
    newest = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    return _beginning(incomplete, map(str, newest))


def data(incomplete: str) -> list[str]:
    """Data sets that are known by name, and files."""
    from cvt_cli.datasets.torchvision_sets import KNOWN_SETS

    return [*_beginning(incomplete, KNOWN_SETS), *_files(incomplete)]


def devices(incomplete: str) -> list[str]:
    return _beginning(incomplete, ("auto", "cpu", "cuda", "cuda:0", "cuda:1", "mps"))


def engines(incomplete: str) -> list[str]:
    """Runtimes, the last of a list with commas."""
    before, comma, last = incomplete.rpartition(",")
    names = ("torch", "onnxruntime", "openvino")
    return [before + comma + name for name in _beginning(last, names)]


def trackers(incomplete: str) -> list[str]:
    """Tools that follow a run, the last of a list with commas."""
    from cvt_cli.tracking.trackers import TRACKERS

    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in _beginning(last, TRACKERS)]


BY_METAVAR: dict[str, Complete] = {"MODEL": models, "DATA": data, "RUN": runs, "DEVICE": devices}
"""What completes the value of an option that the help calls so."""


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _files(incomplete: str) -> Iterator[str]:
    for name in sorted(glob.glob(glob.escape(incomplete) + "*")):
        yield name + "/" if os.path.isdir(name) else name
