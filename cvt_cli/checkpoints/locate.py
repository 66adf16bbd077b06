"""What follows ``--model``: found on this machine or fetched, without reading a tensor."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cvt_cli.base import places
from cvt_cli.base.errors import CheckpointError, UnreachableError, UsageError
from cvt_cli.base.progress import Progress, Say
from cvt_cli.checkpoints import cache, folders, hub, hub_client
from cvt_cli.checkpoints.cache import Snapshot
from cvt_cli.checkpoints.checkpoint import Checkpoint
from cvt_cli.spec import published
from cvt_cli.spec.formats import FORMATS
from cvt_cli.spec.published import KnownCheckpoint


@dataclass(frozen=True)
class Access:
    """How a model that is not on this machine may be fetched."""

    say: Say
    progress: Progress
    revision: str | None = None
    offline: bool = False
    detail: Say = lambda _: None  # takes what is said only to who asks for it


@dataclass(frozen=True)
class Repository:
    """A hub repository that the user named, whatever of it is on this machine."""

    name: str
    known: KnownCheckpoint | None


def check_revision(text: str, revision: str | None) -> None:
    """Raises UsageError if a revision is asked for of something that has none; finds nothing."""
    known = published.find(text)
    _refuse_revision(text, known, _mode(Path(places.expanded(text)), or_raise=False), revision)


def _refuse_revision(
    text: str, known: KnownCheckpoint | None, here: int | None, revision: str | None
) -> None:
    if revision is not None and (here is not None or (known and known.embedded)):
        raise UsageError(
            f"`{text}` is on this machine; --revision is only for repositories on the hub"
        )


def find(text: str, access: Access) -> Checkpoint | Repository:
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
    _refuse_revision(text, known, here, access.revision)
    if here is not None:
        is_folder, name = stat.S_ISDIR(here), text
        if not (is_folder or stat.S_ISREG(here)):
            raise CheckpointError(f"`{path}` is neither a folder nor a regular file")
        if known is not None and path.suffix not in folders.SUFFIXES:
            name = os.path.join(os.curdir, text)  # in results, which it would be mistaken in
            other = known.repository or known.name.replace("-", "_")
            access.say(
                f"`{text}` is the {'folder' if is_folder else 'file'} of that name here; "
                f"the published model is `{other}`"
            )
        if is_folder and (best := folders.best_of(path)):
            access.say(f"`{path}` is a training run; its best epoch is used: `{best}`")
            return Checkpoint.at(best, None, os.path.join(name, best.name))
        return Checkpoint.at(path, known or _known_by_path(path.resolve()), name)
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


def embedded(known: KnownCheckpoint) -> Checkpoint:
    """A checkpoint that is part of this package."""
    assert known.embedded is not None
    return Checkpoint.at(known.embedded, known, known.name)


def locate(text: str, access: Access, need: Literal["weights", "config"] = "weights") -> Checkpoint:
    """Where on this machine that is which the user calls a model (`find`).

    What the cache does not hold is fetched; what it holds costs no network call.

    Raises:
        UsageError: as `find`.
        CheckpointError: as `find`, or it cannot be fetched (`hub.fetch`).
    """
    found = find(text, access)
    return found if isinstance(found, Checkpoint) else held(found, access, need)


def held(
    repository: Repository, access: Access, need: Literal["weights", "config"] = "weights"
) -> Checkpoint:
    """Where a hub repository is on this machine, fetched if need be.

    Raises:
        CheckpointError: it cannot be fetched (`hub.fetch`).
    """
    known = repository.known
    snapshot = cache.find(repository.name, access.revision)
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


def fetched(snapshot: Snapshot) -> Checkpoint:
    """Where a hub repository is that the cache holds.

    Raises:
        CheckpointError: a link out of the cache.
    """
    cache.refuse_links_out_of_the_cache(snapshot)
    return Checkpoint.of_snapshot(snapshot, published.find(snapshot.repository))


def _repository(text: str) -> str | None:
    """The hub repository that a text can mean; None for what can only be a path."""
    suffixes = (*folders.SUFFIXES, *(form.suffix for form in FORMATS.values()))
    if not hub_client.REPOSITORY.fullmatch(text) or ".." in text or Path(text).suffix in suffixes:
        return None
    return None if Path(text).parent.exists() else text


def _known_by_path(path: Path) -> KnownCheckpoint | None:
    """The published checkpoint that a path says it holds: by name, or in the hub client's cache."""
    cached = [part.split("--") for part in path.parts if part.startswith("models--microsoft--")]
    names = [
        (folders.folder_of(path) or path).name,
        *(parts[2] for parts in cached if len(parts) == 3),
    ]
    return next((found for name in names if (found := published.find(name))), None)
