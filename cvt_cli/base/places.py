"""Where the files live that this tool makes or fetches.

``CVT_CACHE`` names the folder; without it, the platform's cache folder is used.
"""

import os
import shlex
from pathlib import Path

from cvt_cli.base import files
from cvt_cli.base.conditions import Conditions
from cvt_cli.base.errors import UsageError


def expanded(path: str) -> str:
    """A path with ``~`` or ``~user`` in front written out; a file that is called so is meant first.

    Raises:
        UsageError: it is empty, or there is no such user, or no home folder.
    """
    if not path:
        raise UsageError("the path is empty; `.` names this folder")
    if not path.startswith("~") or os.path.lexists(path):
        return path
    written_out = os.path.expanduser(path)
    if written_out == path:
        raise UsageError(f"`{path}`: there is no home folder `{path.partition('/')[0]}`")
    return written_out


def cache_dir() -> Path:
    """The folder for what is made or fetched; it need not exist yet.

    Without a home folder it is `files.NOWHERE`: what would be read from it is not there, so that
    whatever needs no cache goes on.
    """
    if chosen := os.environ.get("CVT_CACHE"):
        return _chosen_by("CVT_CACHE", Path(expanded(chosen)))
    import platformdirs

    try:
        folder = platformdirs.user_cache_dir("cvt")
    except RuntimeError:  # no home folder
        folder = "~"
    return files.NOWHERE if folder.startswith("~") else _chosen_by("CVT_CACHE", Path(folder))


def _chosen_by(variable: str, folder: Path) -> Path:
    files.chosen_by[folder] = variable
    return folder


def data_dir() -> Path:
    """The folder that known data sets are looked for in when ``--data-dir`` does not say."""
    return cache_dir() / "data"


def no_data(command: str, what_for: str, told: Path | None) -> UsageError:
    """That a command was given no images, such as "train on"; ``told`` is ``--data-dir``, which
    other tools call the images themselves."""
    if told is not None:
        return UsageError(
            f"no data to {what_for}: --data-dir says where known data sets are kept",
            hint=f"to name a folder of your own images: cvt {command} {shlex.quote(str(told))}",
        )
    return UsageError(
        f"no data to {what_for}",
        hint="name a folder with one folder of images per class, or a known data set: "
        f"cvt {command} cifar10",
    )


def graph_path(weights_hash: str, made_under: Conditions) -> Path:
    """Where the prepared graph of a checkpoint is kept; it need not exist.

    Args:
        weights_hash: of the file with the tensors.
        made_under: all that the graph depends on beside them.
    """
    return graphs_of(weights_hash) / made_under.key / "model.onnx"


def graphs_of(weights_hash: str) -> Path:
    """The folder of all graphs that were prepared from one file of tensors."""
    return graphs_dir() / weights_hash


def graphs_dir() -> Path:
    """The folder of all prepared graphs."""
    return cache_dir() / "graphs"


def hub_dir() -> Path:
    """The hub client's own cache, which other tools share: ``HF_HUB_CACHE``, ``HF_HOME``.

    Without a home folder it is below `files.NOWHERE`, as `cache_dir`.
    """
    from huggingface_hub import constants

    folder = constants.HF_HUB_CACHE
    if folder.startswith("~"):
        return files.NOWHERE / "hub"
    variable = "HF_HUB_CACHE" if os.environ.get("HF_HUB_CACHE") else "HF_HOME"
    return _chosen_by(variable, Path(folder))
