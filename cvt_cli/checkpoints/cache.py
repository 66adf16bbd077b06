"""Checkpoints of the Hugging Face hub that its client's cache holds; asks nobody.

The files stay where huggingface_hub keeps them, shared with the user's other tools (its guide
"Manage your cache" describes the form): ``refs/main`` names a commit, ``snapshots/<commit>/`` holds
links to ``blobs/<hash>``. The client itself is imported only to remove something.

What else is known of a checkpoint lies in ``CVT_CACHE``, in a folder for each repository and
weights file: when that file was last used and found right, and its tensors as safetensors if it is
a pickle.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cvt_cli.base import files, places, stamps, text
from cvt_cli.base.errors import CheckpointError, CvtError
from cvt_cli.base.limits import LARGEST_CONFIG_BYTES
from cvt_cli.checkpoints import folders

PARTIAL = ".cvt.incomplete"
"""Suffix of a blob that is being fetched, or was until something interrupted that."""

_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Snapshot:
    """A hub repository at one commit, in the client's cache."""

    repository: str
    commit: str

    @property
    def storage(self) -> Path:
        """The folder of the repository in the client's cache."""
        return storage_of(self.repository)

    @property
    def folder(self) -> Path:
        """A folder in the hub's form; its files are links."""
        return self.storage / "snapshots" / self.commit

    @property
    def weights(self) -> Path | None:
        """The file with the tensors, if it is there: safetensors rather than a pickle."""
        return folders.find_weights(self.folder)

    @property
    def used(self) -> list[Path | None]:
        """The files that this tool reads and fetches; there may be more, of other tools."""
        names = (folders.CONFIG_FILE, folders.PREPROCESSING_FILE, folders.CARD_FILE)
        return [*(self.folder / name for name in names), self.weights]

    @property
    def missing(self) -> list[str]:
        """The files that a checkpoint needs and this folder has not: half written, or never asked.

        A repository without a preprocessing file is whole once the hub has said so.
        """
        config, preprocessing = folders.CONFIG_FILE, folders.PREPROCESSING_FILE
        absent = self.storage / ".no_exist" / self.commit  # where the client notes such files
        missing = [] if os.path.isfile(self.folder / config) else [config]
        here = os.path.isfile(self.folder / preprocessing)
        if not here and not os.path.exists(absent / preprocessing):
            missing.append(preprocessing)
        return missing if self.weights else [*missing, folders.WEIGHTS_FILES[0]]

    @property
    def refs(self) -> list[str]:
        """The branches, tags and other names that are known to mean this commit."""
        root = self.storage / "refs"
        found = [path for path in root.rglob("*") if path.is_file()]
        return sorted(p.relative_to(root).as_posix() for p in found if _read(p) == self.commit)


def storage_of(repository: str) -> Path:
    """The folder of a repository in the client's cache; it need not exist."""
    return places.hub_dir() / f"models--{repository.replace('/', '--')}"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None


def find(repository: str, revision: str | None = None) -> Snapshot | None:
    """What the cache holds of a repository; perhaps without its weights. Asks nobody.

    Args:
        repository: owner/name.
        revision: a branch, a tag, ``refs/pr/N`` or a whole commit hash; by default ``main``.
    """
    revision = revision or "main"
    commit: str | None = revision
    if not _SHA1.fullmatch(revision):
        commit = _read(storage_of(repository) / "refs" / revision)
    if commit is None or not _SHA1.fullmatch(commit):
        return None
    snapshot = Snapshot(repository, commit)
    return snapshot if os.path.isdir(snapshot.folder) else None


def snapshots() -> list[Snapshot]:
    """Every CvT in the client's cache, by name, whichever tool fetched it."""
    found = []
    for folder in places.hub_dir().glob("models--*--*/snapshots/*"):
        _, owner, name = folder.parts[-3].split("--", 2)
        snapshot = Snapshot(f"{owner}/{name}", folder.name)
        if _is_cvt(snapshot):
            found.append(snapshot)
    return sorted(found, key=lambda snapshot: (snapshot.repository, snapshot.commit))


def _is_cvt(snapshot: Snapshot) -> bool:
    """Whether its config says so, or is damaged and something was made of its repository here."""
    config = snapshot.folder / folders.CONFIG_FILE
    with suppress(OSError, ValueError, AttributeError):
        if text.read_json(config, most=LARGEST_CONFIG_BYTES).get("model_type") == "cvt":
            return True
    with suppress(OSError, CvtError):  # CvtError: there is no place for what is made
        if config.is_symlink() and os.path.isdir(record_of(snapshot.repository, "-").parent):
            return not os.path.isfile(config) or is_right(config) is False
    return False


# --- what is right: hashes, and links that stay inside the cache


def announced_hash(path: Path) -> str | None:
    """The SHA-256 or git hash that the hub gave for a file of a snapshot.

    None where the client could not make links and keeps the file itself in the snapshot.
    """
    name = Path(os.readlink(path)).name if path.is_symlink() else ""
    return name if is_hash(name) else None


def is_hash(value: str) -> bool:
    """Whether a text is a SHA-256 or a git hash (a commit's or a blob's), in full."""
    return bool(_SHA256.fullmatch(value) or _SHA1.fullmatch(value))


def has_hash(path: Path, announced: str) -> bool:
    """Whether a file's content has a SHA-256, or a git blob hash, that the hub announced."""
    return content_hash(path, git=len(announced) == 40) == announced


def content_hash(path: Path, git: bool = False) -> str:
    """The SHA-256 of a file, or the hash that git gives it."""
    with path.open("rb") as file:
        start = hashlib.sha1(b"blob %d\0" % path.stat().st_size) if git else hashlib.sha256()
        return hashlib.file_digest(file, lambda: start).hexdigest()


def is_right(path: Path) -> bool | None:
    """Whether a file of a snapshot has its announced hash; None where none is known."""
    announced = announced_hash(path)
    return None if announced is None else has_hash(path, announced)


def refuse_links_out_of_the_cache(snapshot: Snapshot) -> None:
    """Raises CheckpointError if a file of the snapshot lies outside the client's cache."""
    allowed = [snapshot.storage.resolve(), places.hub_dir().resolve()]
    for path in sorted(snapshot.folder.iterdir()):
        target = path.resolve()
        if not any(target.is_relative_to(root) for root in allowed):
            raise CheckpointError(
                f"`{path}` links out of the hub's cache, to `{target}`, and was not followed",
                hint=f"`cvt cache remove {snapshot.repository}` removes it; "
                "name a file of your own by its own path",
            )


def record_of(repository: str, weights_hash: str) -> Path:
    """The folder in ``CVT_CACHE`` for what is made of one weights file; it need not exist."""
    return places.cache_dir() / "hub" / storage_of(repository).name / weights_hash


def conversion(record: Path) -> Path:
    """Where the safetensors file is kept that was made of a pickle; it need not exist."""
    return record / "converted.safetensors"


def converted(record: Path) -> Path | None:
    """The safetensors file that was made of a pickle, if it is what was made."""
    made = conversion(record)
    return made if not made.is_symlink() and stamps.is_right(made) else None


def checked_hash(snapshot: Snapshot) -> str:
    """The hash of a snapshot's weights, after making sure that they have it.

    A file that was found right is not read again while its size and time stay the same.

    Raises:
        CheckpointError: a link out of the cache, the content is not what the hub announced, or it
            cannot be read.
    """
    refuse_links_out_of_the_cache(snapshot)
    weights = snapshot.weights
    assert weights is not None
    announced = announced_hash(weights)
    if announced is None:  # there is nothing to compare it with
        try:
            return stamps.hash_of(weights)
        except OSError as error:
            raise folders.unreadable(weights, error) from None
    stamp = record_of(snapshot.repository, announced) / "verified.json"
    stat = weights.stat()
    content = json.dumps({"size": stat.st_size, "mtime_ns": stat.st_mtime_ns})
    if _read(stamp) != content:
        if not has_hash(weights, announced):
            with suppress(OSError):
                stamp.unlink()
            raise CheckpointError(
                f"`{weights}` is damaged: its hash is not the one that the hub announced, "
                f"{announced}",
                hint=f"`cvt download {snapshot.repository}` downloads it again",
            )
        with suppress(CvtError):  # a cache that cannot be written costs the reading each time
            files.write_text(stamp, content)
    with suppress(OSError):  # the time of last use
        os.utime(stamp)
    return announced


def verify(snapshot: Snapshot) -> Iterator[tuple[Path, bool | None]]:
    """Read every file of a snapshot, and what was made of it: is it right, or None if unknown.

    Damaged weights are refused from now on until they are fetched again; a damaged conversion,
    graph or compiled graph is removed, since it is made again where it is next used.

    Raises:
        CheckpointError: a link out of the cache.
    """
    refuse_links_out_of_the_cache(snapshot)
    for path in files.below(snapshot.folder):
        right = is_right(path) if path.is_file() else False  # a link to nothing
        if right is False and path == snapshot.weights and (record := weights_record(snapshot)):
            with suppress(OSError):
                (record / "verified.json").unlink()
        yield path, right
    record = weights_record(snapshot)
    if record and os.path.exists(made := conversion(record)):
        right = stamps.verify(made)
        if not right:
            stamps.remove(made)
        yield made, right
    if record:
        for _, path, right in verify_graphs(places.graphs_of(record.name)):
            yield path, right


def verify_graphs(folder: Path) -> Iterator[tuple[str, Path, bool]]:
    """Read every prepared graph below a folder, and what OpenVINO compiled of it.

    What is damaged is removed, since it is made again where it is next used.

    Yields:
        The checkpoint that it was made of, the file, and whether it is right.
    """
    names: dict[Path, str] = {}  # by the folder of the graph
    for path in stamps.stamped_below(folder):
        stamp = stamps.read(path)
        found = stamp["conditions"].get("model") if stamp else None
        name = found or names.get(path.parent) or names.get(path.parent.parent) or path.parent.name
        names[path.parent] = name
        right = stamps.verify(path) is True
        if not right:
            stamps.remove(path)
        yield name, path, right


def weights_record(snapshot: Snapshot) -> Path | None:
    """The folder in ``CVT_CACHE`` for what is made of a snapshot's weights; it need not exist."""
    announced = weights_hash(snapshot)
    return record_of(snapshot.repository, announced) if announced else None


def weights_hash(snapshot: Snapshot) -> str | None:
    """The hash that the hub announced for a snapshot's weights, or that they have where the cache
    was copied without its links; None where they are not here or cannot be read."""
    if snapshot.weights is None:
        return None
    if announced := announced_hash(snapshot.weights):
        return announced
    with suppress(OSError):
        return stamps.hash_of(snapshot.weights)
    return None


def sizes(snapshot: Snapshot) -> tuple[int, int]:
    """Bytes of a snapshot's files, and of what was made of its weights: conversion and graphs."""
    own = sum(path.stat().st_size for path in files.below(snapshot.folder) if path.is_file())
    record = weights_record(snapshot)
    if record is None:
        return own, 0
    made = conversion(record)
    converted_bytes = made.stat().st_size if os.path.isfile(made) else 0
    return own, converted_bytes + size_of(places.graphs_of(record.name))


def ready_weights(snapshot: Snapshot) -> Path | None:
    """The weights as safetensors, verified; None if they are a pickle still to be converted.

    Raises:
        CheckpointError: as `checked_hash`.
    """
    weights_hash = checked_hash(snapshot)
    if snapshot.weights and snapshot.weights.suffix == ".safetensors":
        return snapshot.weights
    return converted(record_of(snapshot.repository, weights_hash))


def last_use(snapshot: Snapshot) -> float | None:
    """When the weights were last used by this tool, else by any, in seconds since 1970."""
    if snapshot.weights is None:
        return None
    if record := weights_record(snapshot):
        with suppress(OSError):
            return (record / "verified.json").stat().st_mtime
    return snapshot.weights.stat().st_atime


# --- what was made of other checkpoints: of runs and folders, and of the one in the package


@dataclass(frozen=True)
class Prepared:
    """The graphs of a checkpoint that is not in the hub's cache."""

    name: str  # as it was told when they were made
    folder: Path
    bytes: int
    last_use: float  # seconds since 1970

    def to_json(self) -> dict[str, Any]:
        """The keys of `cvt cache list`, of which a repository has more."""
        return {"name": self.name, "made_bytes": self.bytes, "path": str(self.folder)}


def prepared() -> list[Prepared]:
    """All of them, by name."""
    of_hub = {weights_hash(snapshot) for snapshot in snapshots()}
    found = []
    for folder in places.graphs_dir().iterdir() if places.graphs_dir().is_dir() else ():
        if folder.name in of_hub or folder.is_symlink() or not (size := size_of(folder)):
            continue
        stamped = list(stamps.stamped_below(folder))
        told = (stamp["conditions"].get("model") for p in stamped if (stamp := stamps.read(p)))
        used = max((p.stat().st_atime for p in stamped if p.is_file()), default=0.0)
        found.append(Prepared(next(filter(None, told), folder.name), folder, size, used))
    return sorted(found, key=lambda one: one.name)


# --- removing


def remove_prepared(one: Prepared) -> int:
    """Remove the graphs of a checkpoint; gives the bytes freed.

    Raises:
        CvtError: they cannot be removed.
    """
    try:
        shutil.rmtree(one.folder)
    except OSError as error:
        raise CvtError(f"cannot remove `{one.folder}`: {error.strerror or error}") from error
    return one.bytes


def remove(repository: str) -> int:
    """Remove every revision of a repository and what was made of it; gives the bytes freed.

    A process that has it loaded keeps running: its files vanish from the folder only.

    Raises:
        CheckpointError: the cache holds nothing of it, or another process is fetching it.
        CvtError: a file cannot be removed.
    """
    import filelock
    import huggingface_hub

    storage = storage_of(repository)
    record = record_of(repository, "-").parent
    for partial in storage.glob(f"blobs/*{PARTIAL}"):
        etag = partial.name.removesuffix(PARTIAL)
        lock = filelock.FileLock(places.hub_dir() / ".locks" / storage.name / f"{etag}.lock")
        try:
            with suppress(NotImplementedError):  # a file system without locks
                lock.acquire(timeout=0)
        except filelock.Timeout:
            raise CheckpointError(
                f"`{repository}` is being downloaded by another process, and was not removed"
            ) from None
        lock.release()
    hashes = {path.name for path in record.iterdir()} if os.path.isdir(record) else set()
    for folder in storage.glob("snapshots/*"):
        if found := weights_hash(Snapshot(repository, folder.name)):
            hashes.add(found)
    graphs = [places.graphs_of(weights_hash) for weights_hash in hashes]
    before = sum(size_of(folder) for folder in (storage, record, *graphs))
    if not (os.path.exists(storage) or storage.is_symlink() or os.path.exists(record)):
        raise CheckpointError(
            f"the cache (`{places.hub_dir()}`) holds nothing of `{repository}`",
            hint="`cvt cache list` shows what it holds",
        )
    with suppress(huggingface_hub.CacheNotFound):  # the client knows what its tools share
        cached = huggingface_hub.scan_cache_dir()
        for repo in cached.repos:
            if repo.repo_id == repository and repo.repo_type == "model":
                # It looks for a commit in all repositories, which may share it: a renamed one does.
                alone = replace(cached, repos=frozenset([repo]))
                commits = [revision.commit_hash for revision in repo.revisions]
                alone.delete_revisions(*commits).execute()
    for folder in (storage, record, *graphs):
        try:
            if folder.is_symlink():
                folder.unlink()
            elif os.path.exists(folder):
                shutil.rmtree(folder)
        except OSError as error:
            raise CvtError(f"cannot remove `{folder}`: {error.strerror or error}") from error
    return before


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder; links are not followed."""
    return sum(p.lstat().st_size for p in files.below(folder) if p.is_file() and not p.is_symlink())
