"""Checkpoints of the Hugging Face hub: found in its client's cache, or fetched into it.

The files stay where huggingface_hub keeps them, shared with the user's other tools (its guide
"Manage your cache" describes the form): ``refs/main`` names a commit, ``snapshots/<commit>/`` holds
links to ``blobs/<hash>``. A branch is resolved to a commit once and all files are taken from that
commit; ``refs/`` names it only when they are all there and have the hash that the hub announced.

A checkpoint that is in the cache costs no network call and does not import the client. What else is
known of it lies in ``CVT_CACHE``, in a folder for each repository and weights file: when that file
was last used and found right, and its tensors as safetensors if it is a pickle.
"""

import hashlib
import io
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvt_cli import __version__, cache, checkpoints, layouts
from cvt_cli.checkpoints import Checkpoint
from cvt_cli.errors import CheckpointError, CvtError, UnreachableError
from cvt_cli.progress import Advance, Progress, Say

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""Owner and name, as every repository of the hub has them."""

REACHABLE_SEC = 3.0
"""How long the hub may take to answer the first question; ``HF_HUB_ETAG_TIMEOUT`` overrules."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PARTIAL = ".cvt.incomplete"


@dataclass(frozen=True)
class Snapshot:
    """A hub repository at one commit, in the client's cache."""

    repository: str
    commit: str

    @property
    def storage(self) -> Path:
        """The folder of the repository in the client's cache."""
        return _storage(self.repository)

    @property
    def folder(self) -> Path:
        """A folder in the hub's form; its files are links."""
        return self.storage / "snapshots" / self.commit

    @property
    def weights(self) -> Path | None:
        """The file with the tensors, if it is there: safetensors rather than a pickle."""
        paths = (self.folder / name for name in layouts.WEIGHTS_FILES)
        return next((path for path in paths if path.is_file()), None)

    @property
    def missing(self) -> list[str]:
        """The files that a checkpoint needs and this folder has not: half written, or never asked.

        A repository without a preprocessing file is whole once the hub has said so.
        """
        config, preprocessing = layouts.CONFIG_FILE, layouts.PREPROCESSING_FILE
        absent = self.storage / ".no_exist" / self.commit  # where the client notes such files
        missing = [] if (self.folder / config).is_file() else [config]
        if not (self.folder / preprocessing).is_file() and not (absent / preprocessing).exists():
            missing.append(preprocessing)
        return missing if self.weights else [*missing, layouts.WEIGHTS_FILES[0]]

    @property
    def refs(self) -> list[str]:
        """The branches, tags and other names that are known to mean this commit."""
        root = self.storage / "refs"
        found = [path for path in root.rglob("*") if path.is_file()]
        return sorted(p.relative_to(root).as_posix() for p in found if _read(p) == self.commit)


def _storage(repository: str) -> Path:
    return cache.hub_dir() / f"models--{repository.replace('/', '--')}"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None


def never_asks() -> bool:
    """Whether ``HF_HUB_OFFLINE`` (or ``TRANSFORMERS_OFFLINE``) forbids the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def endpoint() -> str:
    """The hub's address, ``HF_ENDPOINT`` or the public one."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def find(repository: str, revision: str | None = None) -> Snapshot | None:
    """What the cache holds of a repository; perhaps without its weights. Asks nobody.

    Args:
        repository: owner/name.
        revision: a branch, a tag, ``refs/pr/N`` or a whole commit hash; by default ``main``.
    """
    revision = revision or "main"
    commit: str | None = revision
    if not _COMMIT.fullmatch(revision):
        commit = _read(_storage(repository) / "refs" / revision)
    if commit is None or not _COMMIT.fullmatch(commit):
        return None
    snapshot = Snapshot(repository, commit)
    return snapshot if snapshot.folder.is_dir() else None


def snapshots() -> list[Snapshot]:
    """Every CvT in the client's cache, by name, whichever tool fetched it."""
    found = []
    for config in cache.hub_dir().glob(f"models--*--*/snapshots/*/{layouts.CONFIG_FILE}"):
        with suppress(ValueError, AttributeError):
            if json.loads(_read(config) or "").get("model_type") == "cvt":
                _, owner, name = config.parts[-4].split("--", 2)
                found.append(Snapshot(f"{owner}/{name}", config.parent.name))
    return sorted(found, key=lambda snapshot: (snapshot.repository, snapshot.commit))


# --- what is right: hashes, and links that stay inside the cache


def announced_hash(path: Path) -> str | None:
    """The SHA-256 or git hash that the hub gave for a file of a snapshot.

    None where the client could not make links and keeps the file itself in the snapshot.
    """
    name = Path(os.readlink(path)).name if path.is_symlink() else ""
    return name if _SHA256.fullmatch(name) or _COMMIT.fullmatch(name) else None


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
    allowed = [snapshot.storage.resolve(), cache.hub_dir().resolve()]
    for path in sorted(snapshot.folder.iterdir()):
        target = path.resolve()
        if not any(target.is_relative_to(root) for root in allowed):
            raise CheckpointError(
                f"`{path}` is a link out of the hub's cache, to `{target}`, and was not followed",
                hint=f"`cvt cache remove {snapshot.repository}` clears it; "
                "a file of your own is read with --model PATH",
            )


def record_of(repository: str, weights_hash: str) -> Path:
    """The folder in ``CVT_CACHE`` for what is made of one weights file; it need not exist."""
    return cache.cache_dir() / "hub" / _storage(repository).name / weights_hash


def converted(record: Path) -> Path | None:
    """The safetensors file that was made of a pickle, if it was."""
    made = (path for path in sorted(record.glob("*.safetensors")) if not path.is_symlink())
    return next(made, None)


def converted_name(record: Path, made: Path) -> Path:
    """Where such a file is kept: its own SHA-256 is its name, to be checked later."""
    return record / f"{content_hash(made)}.safetensors"


def checked_hash(snapshot: Snapshot) -> str:
    """The hash of a snapshot's weights, after making sure that they have it.

    A file that was found right is not read again while its size and time stay the same.

    Raises:
        CheckpointError: a link out of the cache, or the content is not what the hub announced.
    """
    refuse_links_out_of_the_cache(snapshot)
    weights = snapshot.weights
    assert weights is not None
    announced = announced_hash(weights)
    if announced is None:
        return content_hash(weights)
    stamp = record_of(snapshot.repository, announced) / "verified.json"
    stat = weights.stat()
    content = json.dumps({"size": stat.st_size, "mtime_ns": stat.st_mtime_ns})
    if _read(stamp) != content:
        if not has_hash(weights, announced):
            with suppress(OSError):
                stamp.unlink()
            raise CheckpointError(
                f"`{weights}` is damaged: it has not the hash that the hub announced, {announced}",
                hint=f"`cvt download {snapshot.repository}` fetches it again",
            )
        with suppress(CvtError):  # a cache that cannot be written costs the reading each time
            cache.write_text(stamp, content)
    with suppress(OSError):  # the time of last use
        os.utime(stamp)
    return announced


def verify(snapshot: Snapshot) -> Iterator[tuple[Path, bool | None]]:
    """Read every file of a snapshot, and what was made of it: is it right, or None if unknown.

    Damaged weights are refused from now on until they are fetched again; a damaged conversion is
    removed, since it is made anew from the pickle.

    Raises:
        CheckpointError: a link out of the cache.
    """
    refuse_links_out_of_the_cache(snapshot)
    for path in sorted(snapshot.folder.iterdir()):
        right = is_right(path) if path.is_file() else False
        if not right and (record := weights_record(snapshot)) and path == snapshot.weights:
            with suppress(OSError):
                (record / "verified.json").unlink()
        yield path, right
    record = weights_record(snapshot)
    if record and (made := converted(record)):
        right = made.stem == content_hash(made)
        if not right:
            made.unlink()
        yield made, right


def weights_record(snapshot: Snapshot) -> Path | None:
    """The folder in ``CVT_CACHE`` for what is made of a snapshot's weights; it need not exist."""
    announced = announced_hash(snapshot.weights) if snapshot.weights else None
    return announced and record_of(snapshot.repository, announced) or None


def sizes(snapshot: Snapshot) -> tuple[int, int]:
    """Bytes of a snapshot's files, and of what was made of its weights."""
    files = sum(path.stat().st_size for path in snapshot.folder.iterdir() if path.is_file())
    record = weights_record(snapshot)
    made = converted(record) if record else None
    return files, made.stat().st_size if made else 0


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


# --- fetching


def fetch(
    repository: str,
    revision: str | None = None,
    *,
    known: Checkpoint | None = None,
    weights: bool = True,
    offline: bool = False,
    say: Say,
    progress: Progress,
) -> Snapshot:
    """Ask the hub what a revision is, and fetch what of it is not there, verified.

    Its config is read before the weights are fetched. An interrupted download goes on where it
    stopped; of several processes one fetches and the others wait.

    Args:
        repository: owner/name.
        revision: a branch, a tag, ``refs/pr/N`` or a commit; by default ``main``.
        known: the published checkpoint that this repository holds, if it does.
        weights: False for config, preprocessing and card alone.
        offline: ask nobody, as with ``HF_HUB_OFFLINE``.
        say: told what is fetched, how large it is and from where.
        progress: of the weights, in bytes.

    Raises:
        UnreachableError: the hub is not to be asked, or does not answer in time.
        CheckpointError: no such repository or revision, no access, no CvT, a wrong hash, or the
            download broke off.
        ConfigError: its config holds a value that no published CvT has.
        CvtError: the cache cannot be written to.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    info = _ask(repository, revision, offline)
    names = {sibling.rfilename for sibling in info.siblings or ()}
    if layouts.CONFIG_FILE not in names:
        raise CheckpointError(
            f"`{repository}` on {endpoint()} is no checkpoint: it has no `{layouts.CONFIG_FILE}`; "
            f"it holds {', '.join(sorted(names)[:8]) or 'nothing'}"
        )
    snapshot = Snapshot(repository, str(info.sha))
    if not weights:
        say(f"reading the config of {repository} at {snapshot.commit[:7]} from {endpoint()}")
    with _explained(repository, revision):
        for name in (layouts.CONFIG_FILE, layouts.PREPROCESSING_FILE, layouts.CARD_FILE):
            path = snapshot.folder / name
            damaged = path.exists() and is_right(path) is False
            try:
                huggingface_hub.hf_hub_download(
                    repository, name, revision=snapshot.commit, force_download=damaged
                )
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:  # there is none, which the client takes down
                pass
    refuse_links_out_of_the_cache(snapshot)
    layouts.read_folder(snapshot.folder, known)
    if not weights:
        return snapshot
    stored = next((name for name in layouts.WEIGHTS_FILES if name in names), None)
    if stored is None:
        others = sorted(names - {layouts.CONFIG_FILE, layouts.PREPROCESSING_FILE, ".gitattributes"})
        raise CheckpointError(
            f"`{repository}` on {endpoint()} has no weights that are read here, neither "
            f"{' nor '.join(f'`{name}`' for name in layouts.WEIGHTS_FILES)}; "
            f"beside its config it holds {', '.join(others[:8]) or 'nothing'}"
        )
    with _explained(repository, revision):
        _fetch_weights(snapshot, stored, say, progress)
    if revision != snapshot.commit:
        cache.write_text(snapshot.storage / "refs" / (revision or "main"), snapshot.commit)
    return snapshot


def _ask(repository: str, revision: str | None, offline: bool) -> "ModelInfo":
    """The hub's record of a repository: commit, file names; asked once, answered in time."""
    wanted = f"`{repository}`" + (f" at revision `{revision}`" if revision else "")
    if (partly := find(repository, revision)) is not None:
        lacking = " and ".join(f"`{name}`" for name in partly.missing)
        not_here = f"{wanted} is in the cache without {lacking} (`{partly.folder}`)"
    else:
        not_here = f"{wanted} is not in the cache (`{cache.hub_dir()}`)"
    not_here += f", and the hub {endpoint()}"
    if offline or never_asks():
        why = "--offline" if offline else "HF_HUB_OFFLINE is set"
        raise _unreachable(repository, f"{not_here} is not asked: {why}")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    _set_up_client()
    timeout = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or REACHABLE_SEC)
    client = huggingface_hub.HfApi(library_name="cvt-cli", library_version=__version__)
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(client.model_info(repository, revision=revision, timeout=timeout))
        except Exception as error:  # told apart below, in the thread that can raise it
            answer.append(error)

    # In a thread, since looking up a name takes as long as the system likes.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    if not answer:
        raise _unreachable(repository, f"{not_here} did not answer within {timeout:g} s")
    found = answer[0]
    if isinstance(found, HfHubHTTPError):
        raise _http_error(found, repository, revision)
    if isinstance(found, Exception):
        raise _unreachable(repository, f"{not_here} cannot be reached: {_first_line(found)}")
    if not _COMMIT.fullmatch(str(found.sha)):
        raise _unreachable(repository, f"{not_here} does not answer as a hub does")
    return found  # type: ignore[no-any-return]


def _unreachable(repository: str, message: str) -> UnreachableError:
    return UnreachableError(
        message,
        hint=f"where there is a network, `cvt download {repository}` fetches it into "
        f"`{_storage(repository)}`, a folder that can be copied here; "
        "or name a checkpoint on this machine: --model PATH, or --model cvt-nano-cifar10",
    )


def _set_up_client() -> None:
    """The client's own bars, warnings and telemetry are off; what matters is said here."""
    import warnings

    from huggingface_hub import constants
    from huggingface_hub.utils.logging import set_verbosity_error
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if "HF_HUB_VERBOSITY" not in os.environ:
        set_verbosity_error()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():  # where HF_HUB_DISABLE_PROGRESS_BARS asks for them
        warnings.simplefilter("ignore")
        disable_progress_bars()
    # It costs a request of its own before the first that was asked for.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    # By default 10 MB: so much would be lost at every break, and so rarely would a bar move.
    constants.DOWNLOAD_CHUNK_SIZE = 1 << 18


def _http_error(error: Any, repository: str, revision: str | None) -> CheckpointError:
    """A sentence for what the hub answered in place of what was asked for."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = getattr(error.response, "status_code", None)
    where = f"{endpoint()}/{repository}"
    token = "set HF_TOKEN, or run `hf auth login`"
    if isinstance(error, GatedRepoError):
        return CheckpointError(
            f"`{repository}` is gated, and this account has no access to it ({status})",
            hint=f"ask for access on {where}, then {token}",
        )
    if isinstance(error, RevisionNotFoundError):
        return CheckpointError(
            f"`{repository}` has no revision `{revision or 'main'}`",
            hint=f"its branches and tags are listed on {where}",
        )
    if isinstance(error, RepositoryNotFoundError):
        near = " or ".join(f"`{name}`" for name in checkpoints.nearest(repository.split("/")[1]))
        return CheckpointError(
            f"there is no `{repository}`: neither a file or folder here, nor a model on "
            f"{endpoint()} that can be seen without a token for it ({status})",
            hint=(f"did you mean {near}? " if near else "") + f"If it is private, {token}",
        )
    if status == 401:
        return CheckpointError(
            f"{endpoint()} does not accept the token that was sent for `{repository}` (401)",
            hint="a new one is made in the hub's settings; unset HF_TOKEN to go without",
        )
    if status == 403:
        return CheckpointError(
            f"{endpoint()} refuses access to `{repository}` (403)", hint=f"{token}"
        )
    if status == 429:
        wait = error.response.headers.get("Retry-After")
        return CheckpointError(
            f"{endpoint()} takes no more requests for now (429), asked for `{repository}`",
            hint=(f"try again in {wait} s, " if wait else "try again in some minutes, ")
            + "or with a token: HF_TOKEN",
        )
    if status is not None and status >= 500:
        return _unreachable(
            repository, f"the hub {endpoint()} fails with status {status}, asked for `{repository}`"
        )
    return CheckpointError(f"{endpoint()} answers {status}, asked for `{repository}`")


@contextmanager
def _explained(repository: str, revision: str | None) -> Iterator[None]:
    """Turn what the client raises while it fetches into what a user can act on."""
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except CvtError:
        raise
    except LocalEntryNotFoundError as error:  # wraps what really happened
        if isinstance(error.__cause__, HfHubHTTPError):
            raise _http_error(error.__cause__, repository, revision) from None
        raise _broke_off(repository, error.__cause__ or error) from None
    except HfHubHTTPError as error:
        raise _http_error(error, repository, revision) from None
    except FileMetadataError as error:
        raise _broke_off(repository, error) from None
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError | TimeoutError):
            raise _broke_off(repository, error) from None
        raise CvtError(
            f"cannot write to the hub's cache `{cache.hub_dir()}`: {error.strerror or error}",
            hint="make room there, or choose another folder with HF_HUB_CACHE or HF_HOME; "
            "what was fetched so far is kept",
        ) from None
    except Exception as error:
        # The client lets its HTTP library's errors through: httpx's, or once requests'.
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise
        raise _broke_off(repository, error) from None


def _broke_off(repository: str, error: BaseException) -> CheckpointError:
    return CheckpointError(
        f"the download of `{repository}` from {endpoint()} broke off: {_first_line(error)}",
        hint="run the same command again; it goes on where this one stopped",
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class _Counted(io.BufferedWriter):
    """A file that reports how many bytes are written to it."""

    def __init__(self, path: Path, advance: Advance) -> None:
        super().__init__(io.FileIO(path, "r+"))
        self._advance = advance

    def write(self, data: Any) -> int:
        written = super().write(data)
        self._advance(written, "")
        return written


def _fetch_weights(snapshot: Snapshot, name: str, say: Say, progress: Progress) -> None:
    """Fetch a large file so that a later call can go on with it, which the client does not do.

    The blob is put under its hash, verified, and then linked by the client.
    """
    import huggingface_hub
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    headers = build_hf_headers(library_name="cvt-cli", library_version=__version__)
    url = huggingface_hub.hf_hub_url(snapshot.repository, name, revision=snapshot.commit)
    announced = huggingface_hub.get_hf_file_metadata(url, headers=headers)
    etag, size = announced.etag or "", announced.size
    if announced.commit_hash != snapshot.commit or size is None:
        raise CheckpointError(f"{endpoint()} does not say what `{name}` is: no commit or no size")
    if not (_SHA256.fullmatch(etag) or _COMMIT.fullmatch(etag)):
        raise CheckpointError(
            f"{endpoint()} announces no hash for `{name}` of `{snapshot.repository}`, so that what "
            f"it sends cannot be verified (ETag {etag!r})",
            hint="fetch it by other means and name its folder: --model PATH",
        )
    what = f"{name} of {snapshot.repository}"
    blob = snapshot.storage / "blobs" / etag
    lock = cache.hub_dir() / ".locks" / snapshot.storage.name / f"{etag}.lock"  # the client's own
    with cache.locked(lock, f"fetching {what}", say):
        if not (blob.is_file() and has_hash(blob, etag)):
            partial = blob.with_name(etag + _PARTIAL)
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.touch()
            done = partial.stat().st_size
            if done > size:
                os.truncate(partial, done := 0)
            free = shutil.disk_usage(partial.parent).free
            if free < size - done:
                raise CvtError(
                    f"no room for {what}: {cache.human_bytes(size - done)} are needed, "
                    f"{cache.human_bytes(free)} free in `{partial.parent}`",
                    hint="make room there, or choose another folder with HF_HUB_CACHE or HF_HOME",
                )
            say(
                f"fetching {what} at {snapshot.commit[:7]}, {cache.human_bytes(size)}, "
                f"from {endpoint()} into `{cache.hub_dir()}`"
                + (f"; {cache.human_bytes(done)} are there already" if done else "")
            )
            with (
                progress(name, size, unit="bytes", done=done) as advance,
                _Counted(partial, advance) as file,
            ):
                file.seek(0, io.SEEK_END)
                try:
                    http_get(url, file, resume_size=done, headers=headers, expected_size=size)
                except KeyboardInterrupt:
                    say(
                        f"interrupted: {cache.human_bytes(file.tell())} of {what} are kept, and "
                        "the same command goes on from there"
                    )
                    raise
            if not has_hash(partial, etag):
                found = content_hash(partial, git=len(etag) == 40)
                partial.unlink()
                raise CheckpointError(
                    f"what {endpoint()} sent as {what} is not what it announced: its hash is "
                    f"{found}, not {etag}; it was thrown away",
                    hint="run the same command again; if it happens again, the hub or something "
                    "on the way changes the file",
                )
            os.replace(partial, blob)
    huggingface_hub.hf_hub_download(snapshot.repository, name, revision=snapshot.commit)


# --- removing


def remove(repository: str) -> int:
    """Remove every revision of a repository and what was made of it; gives the bytes freed.

    A process that has it loaded keeps running: its files vanish from the folder only.

    Raises:
        CheckpointError: the cache holds nothing of it, or another process is fetching it.
        CvtError: a file cannot be removed.
    """
    import filelock
    import huggingface_hub

    storage = _storage(repository)
    record = record_of(repository, "-").parent
    for partial in storage.glob(f"blobs/*{_PARTIAL}"):
        etag = partial.name.removesuffix(_PARTIAL)
        lock = filelock.FileLock(cache.hub_dir() / ".locks" / storage.name / f"{etag}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise CheckpointError(
                f"`{repository}` is being fetched by another process, and was not removed"
            ) from None
        lock.release()
    before = size_of(storage) + size_of(record)
    if not (storage.exists() or storage.is_symlink() or record.exists()):
        raise CheckpointError(
            f"the cache (`{cache.hub_dir()}`) holds nothing of `{repository}`",
            hint="`cvt cache list` shows what it holds",
        )
    _set_up_client()
    with suppress(huggingface_hub.CacheNotFound):  # the client knows what its tools share
        for repo in huggingface_hub.scan_cache_dir().repos:
            if repo.repo_id == repository and repo.repo_type == "model":
                commits = [revision.commit_hash for revision in repo.revisions]
                huggingface_hub.scan_cache_dir().delete_revisions(*commits).execute()
    for folder in (storage, record):
        try:
            if folder.is_symlink():
                folder.unlink()
            elif folder.exists():
                shutil.rmtree(folder)
        except OSError as error:
            raise cache.unwritable(folder, error) from error
    return before


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder; links are not followed."""
    paths = folder.rglob("*") if folder.is_dir() else ()
    return sum(p.lstat().st_size for p in paths if p.is_file() and not p.is_symlink())
