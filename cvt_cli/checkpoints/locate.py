"""What follows ``--model``: found on this machine or fetched, without reading a tensor."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cvt_cli.base import places, stamps
from cvt_cli.base.errors import CheckpointError, UnreachableError, UsageError
from cvt_cli.base.progress import Progress, Say
from cvt_cli.checkpoints import export_metadata, folders, hub, hub_client, store
from cvt_cli.checkpoints.export_metadata import Precision, Record
from cvt_cli.checkpoints.folders import CheckpointConfig
from cvt_cli.checkpoints.store import Snapshot
from cvt_cli.spec import published
from cvt_cli.spec.published import Checkpoint


@dataclass(frozen=True)
class Access:
    """How a model that is not on this machine may be fetched."""

    say: Say
    progress: Progress
    revision: str | None = None
    offline: bool = False
    detail: Say = lambda _: None  # takes what is said only to who asks for it


@dataclass(frozen=True)
class Location:
    """Where a checkpoint lies, and which known one it is, if any."""

    name: str  # as results and messages name it
    path: Path
    known: Checkpoint | None
    snapshot: Snapshot | None = None  # of a hub repository

    @property
    def revision(self) -> str | None:
        """The commit of the hub's repository that it is."""
        return self.snapshot.commit if self.snapshot else None


@dataclass(frozen=True)
class Repository:
    """A hub repository that the user named, whatever of it is on this machine."""

    name: str
    known: Checkpoint | None


def find(text: str, access: Access) -> Location | Repository:
    """What the user calls a model: a file or folder, a known name, a hub repository.

    The one place that decides it, for every command; asks no hub. What is on this machine under
    that name comes first, and a line says so where the name is a known checkpoint's too. Of a
    training run the best epoch is meant.

    Raises:
        UsageError: it is empty, or a revision of something that has none.
        CheckpointError: it is nowhere, or unreadable.
    """
    known = published.find(text)
    path = Path(places.expanded(text))
    here = _mode(path, or_raise=known is None)
    if access.revision is not None and (here is not None or (known and known.embedded)):
        raise UsageError(f"`{text}` is on this machine; --revision is for repositories on the hub")
    if here is not None:
        is_folder, name = stat.S_ISDIR(here), text
        if not (is_folder or stat.S_ISREG(here)):
            raise CheckpointError(f"`{path}` is neither a folder nor a regular file")
        if known is not None and path.suffix not in folders.SUFFIXES:
            name = os.path.join(os.curdir, text)  # in results, which it would be mistaken in
            other = known.repository or known.name.replace("-", "_")
            access.say(
                f"`{text}` is taken as the {'folder' if is_folder else 'file'} of that name here; "
                f"`{other}` means the known checkpoint"
            )
        if is_folder and (best := folders.best_of(path)):
            access.say(f"`{path}` is a training run: its best epoch is taken, `{best}`")
            return Location(os.path.join(name, best.name), best, None)
        return Location(name, path, known or _known_by_path(path.resolve()))
    if known and known.embedded:
        return embedded(known)
    repository = known.repository if known else _repository(text)
    if repository is None:
        raise CheckpointError(
            f"there is no model `{text}`: neither a file or folder, nor a known name, "
            "nor a repository (owner/name)",
            hint=published.suggestion(text),
        )
    return Repository(repository, known)


def _mode(path: Path, or_raise: bool) -> int | None:
    """The kind of what is at a path, as `stat` tells it; None where there is nothing.

    Raises:
        CheckpointError: nobody may look there, if ``or_raise``.
    """
    try:
        return path.stat().st_mode
    except PermissionError as error:
        if or_raise:
            raise folders.unreadable(path, error) from None
    except (OSError, ValueError):  # ValueError: no system takes such a name
        pass
    return None


def embedded(known: Checkpoint) -> Location:
    """A checkpoint that is part of this package."""
    assert known.embedded is not None
    return Location(known.name, known.embedded, known)


def locate(text: str, access: Access, need: Literal["weights", "config"] = "weights") -> Location:
    """Where on this machine that is which the user calls a model (`find`).

    What the cache does not hold is fetched; what it holds costs no network call.

    Raises:
        UsageError: as `find`.
        CheckpointError: as `find`, or it cannot be fetched (`hub.fetch`).
    """
    found = find(text, access)
    return found if isinstance(found, Location) else held(found, access, need)


def held(
    repository: Repository, access: Access, need: Literal["weights", "config"] = "weights"
) -> Location:
    """Where a hub repository is on this machine, fetched if need be.

    Raises:
        CheckpointError: it cannot be fetched (`hub.fetch`).
    """
    known = repository.known
    snapshot = store.find(repository.name, access.revision)
    missing = set(snapshot.missing) if snapshot else {folders.CONFIG_FILE}
    if known:  # its preprocessing is known too
        missing -= {folders.PREPROCESSING_FILE}
    if need == "config":
        missing -= {folders.WEIGHTS_FILE}
    if snapshot is None or missing:
        try:
            snapshot = hub.fetch(
                repository.name,
                access.revision,
                known=known,
                weights=need == "weights",
                offline=access.offline,
                say=access.say,
                progress=access.progress,
            )
        except UnreachableError:
            if snapshot is None or missing != {folders.PREPROCESSING_FILE}:
                raise
    return fetched(snapshot)


def fetched(snapshot: Snapshot) -> Location:
    """Where a hub repository is that the cache holds.

    Raises:
        CheckpointError: a link out of the cache.
    """
    store.refuse_links_out_of_the_cache(snapshot)
    known = published.find(snapshot.repository)
    name = known.name if known else snapshot.repository
    return Location(name, snapshot.folder, known, snapshot)


def _repository(text: str) -> str | None:
    """The hub repository that a text can mean; None for what can only be a path."""
    suffixes = (*folders.SUFFIXES, *export_metadata.SUFFIXES.values())
    if not hub_client.REPOSITORY.fullmatch(text) or ".." in text or Path(text).suffix in suffixes:
        return None
    return None if Path(text).parent.exists() else text


def _known_by_path(path: Path) -> Checkpoint | None:
    """The published checkpoint that a path says it holds: by name, or in the hub client's cache."""
    cached = [part.split("--") for part in path.parts if part.startswith("models--microsoft--")]
    names = [
        (folders.folder_of(path) or path).name,
        *(parts[2] for parts in cached if len(parts) == 3),
    ]
    return next((found for name in names if (found := published.find(name))), None)


def tensors_of(location: Location) -> Path:
    """The file with a checkpoint's tensors as somebody gave them."""
    folder = folders.folder_of(location.path)
    return folders.weights_in(folder) if folder else location.path


def record_of(
    location: Location,
    described: CheckpointConfig,
    *,
    inside: bool = False,
    precision: Precision = "fp32",
    dynamic_size: bool = False,
) -> Record:
    """What a file that is made of a checkpoint shall say of itself.

    Reads the weights for their hash, where the hub has not announced it.

    Args:
        location: of the checkpoint.
        described: what it is.
        inside: whether the file does the preprocessing.
        precision: of the file.
        dynamic_size: whether it takes images of any height and width.
    """
    known, snapshot = location.known, location.snapshot
    if snapshot is not None:
        source = snapshot.repository
    elif known is not None and known.embedded == location.path:
        source = "cvt-cli"
    else:  # a path may say more of the machine than the user wants to pass on
        source = location.path.resolve().name
    folder = folders.folder_of(location.path)
    if snapshot is None and folder and source != "cvt-cli":
        known = None  # its name alone says too little
    licence = known.licence if known else folder and folders.licence_in(folder)
    announced = store.weights_hash(snapshot) if snapshot else None
    if announced is None or len(announced) != 64:
        announced = stamps.hash_of(tensors_of(location))
    name = known.name if known else source if snapshot is None else location.name
    return Record(
        name,
        source,
        location.revision,
        announced,
        licence or None,
        described.config,
        described.labels,
        described.preprocessing,
        inside,
        precision,
        dynamic_size,
    )
