"""Checkpoints of the Hugging Face hub, fetched into its client's cache.

A branch is resolved to a commit once and all files are taken from that commit; the cache's ``refs``
name it only when they are all there and have the hash that the hub announced. What is in the cache
already (`store`) needs none of this.
"""

import io
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvt_cli.base import files, locks, places
from cvt_cli.base.errors import CheckpointError, CvtError, UnreachableError
from cvt_cli.base.limits import LARGEST_CONFIG_BYTES
from cvt_cli.base.package import __version__
from cvt_cli.base.progress import Advance, Progress, Say
from cvt_cli.base.text import human_bytes
from cvt_cli.checkpoints import cache, folders
from cvt_cli.checkpoints.cache import Snapshot
from cvt_cli.checkpoints.hub_client import (
    endpoint,
    first_line,
    is_network_error,
    model_info,
    never_asks,
    within,
)
from cvt_cli.spec import published
from cvt_cli.spec.published import KnownCheckpoint

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata, ModelInfo

SMALL_FILE_SEC = 60.0
"""How long a config, a card, or what the hub says of a large file may take to come."""

SILENT_SEC = 60.0
"""Within which some of a large file must have come, after its headers and all the time."""


def fetch(
    repository: str,
    revision: str | None = None,
    *,
    known: KnownCheckpoint | None = None,
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
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if places.hub_dir().is_relative_to(files.NOWHERE):
        raise UnreachableError(
            f"`{repository}` is not on this machine, and there is no home folder to "
            "download it into",
            hint="set HF_HOME to a folder, and CVT_CACHE to one for converted weights",
        )
    info = _ask(repository, revision, offline)
    names = {sibling.rfilename for sibling in info.siblings or ()}
    if folders.CONFIG_FILE not in names:
        raise CheckpointError(
            f"`{repository}` on {endpoint()} is not a checkpoint: it has no "
            f"`{folders.CONFIG_FILE}`; it holds {', '.join(sorted(names)[:8]) or 'nothing'}"
        )
    snapshot = Snapshot(repository, str(info.sha))
    if not weights:
        say(f"reading the config of {repository} at {snapshot.commit[:7]} from {endpoint()}")
    with _explained(repository, revision):
        for name in (folders.CONFIG_FILE, folders.PREPROCESSING_FILE, folders.CARD_FILE):
            try:
                within(SMALL_FILE_SEC, partial(_fetch_small, snapshot, name))
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:  # there is none, which the client takes down
                pass
    cache.refuse_links_out_of_the_cache(snapshot)
    folders.read_folder(snapshot.folder, known)
    if not weights:
        return snapshot
    stored = next((name for name in folders.WEIGHTS_FILES if name in names), None)
    if stored is None:
        others = sorted(names - {folders.CONFIG_FILE, folders.PREPROCESSING_FILE, ".gitattributes"})
        raise CheckpointError(
            f"`{repository}` on {endpoint()} has no weights that can be read, neither "
            f"{' nor '.join(f'`{name}`' for name in folders.WEIGHTS_FILES)}; "
            f"beside its config it holds {', '.join(others[:8]) or 'nothing'}"
        )
    with _explained(repository, revision):
        _fetch_weights(snapshot, stored, say, progress)
    if revision != snapshot.commit:
        files.write_text(snapshot.storage / "refs" / (revision or "main"), snapshot.commit)
    return snapshot


def _ask(repository: str, revision: str | None, offline: bool) -> "ModelInfo":
    """The hub's record of a repository: commit, file names; asked once, answered in time."""
    wanted = f"`{repository}`" + (f" at revision `{revision}`" if revision else "")
    if (partly := cache.find(repository, revision)) is not None:
        lacking = " and ".join(f"`{name}`" for name in partly.missing)
        without = f" without {lacking}" if lacking else ""
        not_here = f"{wanted} is in the cache{without} (`{partly.folder}`)"
    else:
        not_here = f"{wanted} is not in the cache (`{places.hub_dir()}`)"
    not_here += f", and the hub {endpoint()}"
    if offline or never_asks():
        why = "--offline" if offline else "HF_HUB_OFFLINE is set"
        raise _unreachable(repository, f"{not_here} is not asked: {why}", revision)
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return model_info(repository, revision)
    except HfHubHTTPError as error:
        raise _http_error(error, repository, revision) from None
    except HFValidationError as error:
        message = f"`{repository}` is not a valid repository name: {first_line(error)}"
        raise CheckpointError(message) from None
    except ConnectionError as error:
        raise _unreachable(repository, f"{not_here} {error}", revision) from None


def _unreachable(repository: str, message: str, revision: str | None = None) -> UnreachableError:
    wanted = repository if revision is None else f"{repository} --revision {shlex.quote(revision)}"
    return UnreachableError(
        message,
        hint=f"on a machine with a network, `cvt download {wanted}` puts it into "
        f"`{cache.storage_of(repository)}`, which you can copy here; "
        "or use a model on this machine: a path, or cvt-nano-cifar10",
    )


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
            hint=f"request access on {where}, then {token}",
        )
    if isinstance(error, RevisionNotFoundError):
        return CheckpointError(
            f"`{repository}` has no revision `{revision or 'main'}`",
            hint=f"its branches and tags are listed on {where}",
        )
    if isinstance(error, RepositoryNotFoundError):
        near = " or ".join(f"`{name}`" for name in published.nearest(repository.split("/")[1]))
        return CheckpointError(
            f"there is no model `{repository}`: neither a file or folder here, nor a repository on "
            f"{endpoint()} that is visible without a token ({status})",
            hint=(f"did you mean {near}? " if near else "") + f"if it is private, {token}",
        )
    if status == 401:
        return CheckpointError(
            f"{endpoint()} rejects the token that was sent for `{repository}` (401)",
            hint="create a new token in the hub's settings, or unset HF_TOKEN to send none",
        )
    if status == 403:
        return CheckpointError(
            f"{endpoint()} refuses access to `{repository}` (403)", hint=f"{token}"
        )
    if status == 429:
        wait = error.response.headers.get("Retry-After")
        return CheckpointError(
            f"{endpoint()} accepts no more requests for now (429), asked for `{repository}`",
            hint=(f"try again in {wait} s, " if wait else "try again in a few minutes, ")
            + "or with a token: HF_TOKEN",
        )
    if status is not None and status >= 500:
        return _unreachable(
            repository,
            f"the hub {endpoint()} fails with status {status}, asked for `{repository}`",
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
    except Exception as error:
        if is_network_error(error):
            raise _broke_off(repository, error) from None
        if not isinstance(error, OSError):
            raise
        raise CvtError(
            f"cannot write to the hub's cache `{places.hub_dir()}`: {error.strerror or error}",
            hint="free space there, or choose another folder with HF_HUB_CACHE or HF_HOME; "
            "what was downloaded so far is kept",
        ) from None


def _broke_off(repository: str, error: BaseException) -> CheckpointError:
    return CheckpointError(
        f"the download of `{repository}` from {endpoint()} was interrupted: {first_line(error)}",
        hint="run the same command again; it continues where this one stopped",
    )


def _fetch_small(snapshot: Snapshot, name: str) -> None:
    """Fetch a config or a card, unless it is there and right; a large one is refused unread."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    path = snapshot.folder / name
    damaged = path.exists() and cache.is_right(path) is False
    if damaged or not path.exists():
        with suppress(EntryNotFoundError):  # the client takes that down below
            size = _announced(snapshot, name).size or 0
            if size > LARGEST_CONFIG_BYTES:
                raise CheckpointError(
                    f"`{name}` of `{snapshot.repository}` has {size:,} bytes; at most "
                    f"{LARGEST_CONFIG_BYTES:,} are read"
                )
    huggingface_hub.hf_hub_download(
        snapshot.repository, name, revision=snapshot.commit, force_download=damaged
    )


def _announced(snapshot: Snapshot, name: str) -> "HfFileMetadata":
    """What the hub says of a file before it sends it."""
    import huggingface_hub

    return huggingface_hub.get_hf_file_metadata(_url(snapshot, name), headers=_headers())


def _url(snapshot: Snapshot, name: str) -> str:
    import huggingface_hub

    return huggingface_hub.hf_hub_url(snapshot.repository, name, revision=snapshot.commit)


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers: dict[str, str] = build_hf_headers(library_name="cvt-cli", library_version=__version__)
    return headers


class _Counted(io.BufferedWriter):
    """A file that reports how many bytes are written to it, and takes no more than announced."""

    def __init__(self, path: Path, most: int, what: str, advance: Advance) -> None:
        super().__init__(io.FileIO(path, "r+"))
        self._most, self._what, self._advance = most, what, advance
        self.last_write = time.monotonic()

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._most:
            raise CheckpointError(
                f"{endpoint()} sends more of {self._what} than the {self._most:,} bytes that it "
                "announced",
                hint="run the same command again; if it happens again, the hub or something on "
                "the way to it changes the file",
            )
        written = super().write(data)
        self.last_write = time.monotonic()
        self._advance(written, "")
        return written


def _fetch_weights(snapshot: Snapshot, name: str, say: Say, progress: Progress) -> None:
    """Fetch a large file so that a later call can go on with it, which the client does not do.

    The blob is put under its hash, verified, and then linked by the client.
    """
    import huggingface_hub
    from huggingface_hub.file_download import http_get

    announced = within(SMALL_FILE_SEC, partial(_announced, snapshot, name))
    etag, size = announced.etag or "", announced.size
    if announced.commit_hash != snapshot.commit or size is None:
        raise CheckpointError(f"{endpoint()} does not say what `{name}` is: no commit or no size")
    if not cache.is_hash(etag):
        raise CheckpointError(
            f"{endpoint()} announces no hash for `{name}` of `{snapshot.repository}`, so what "
            f"it sends cannot be verified (ETag {etag!r})",
            hint="download it by other means, and name its folder instead of the repository",
        )
    what = f"{name} of {snapshot.repository}"
    blob = snapshot.storage / "blobs" / etag
    lock = places.hub_dir() / ".locks" / snapshot.storage.name / f"{etag}.lock"  # the client's own
    with locks.locked(lock, f"downloading {what}", say):
        if not (blob.is_file() and cache.has_hash(blob, etag)):
            begun = blob.with_name(etag + cache.PARTIAL)
            begun.parent.mkdir(parents=True, exist_ok=True)
            begun.touch()
            done = begun.stat().st_size
            if done > size:
                os.truncate(begun, done := 0)
            free = shutil.disk_usage(begun.parent).free
            if free < size - done:
                raise CvtError(
                    f"no room for {what}: {human_bytes(size - done)} needed, "
                    f"{human_bytes(free)} free in `{begun.parent}`",
                    hint="free space there, or choose another folder with HF_HUB_CACHE or HF_HOME",
                )
            say(
                f"downloading {what} at {snapshot.commit[:7]}, {human_bytes(size)}, "
                f"from {endpoint()} into `{places.hub_dir()}`"
                + (f"; {human_bytes(done)} are here already" if done else "")
            )
            with (
                progress(name, size, unit="bytes", done=done) as advance,
                _Counted(begun, size, what, advance) as file,
            ):
                file.seek(0, io.SEEK_END)
                get = partial(
                    http_get, _url(snapshot, name), file, headers=_headers(), expected_size=size
                )
                try:
                    within(SILENT_SEC, partial(get, resume_size=done), lambda: file.last_write)
                except KeyboardInterrupt:
                    say(
                        f"interrupted: {human_bytes(file.tell())} of {what} are kept, and "
                        "the same command continues from there"
                    )
                    raise
            if not cache.has_hash(begun, etag):
                found = cache.content_hash(begun, git=len(etag) == 40)
                begun.unlink()
                raise CheckpointError(
                    f"what {endpoint()} sent as {what} is not what it announced: its hash is "
                    f"{found}, not {etag}; it was discarded",
                    hint="run the same command again; if it happens again, the hub or something "
                    "on the way to it changes the file",
                )
            os.replace(begun, blob)
    link = partial(huggingface_hub.hf_hub_download, snapshot.repository, name)
    within(SMALL_FILE_SEC, partial(link, revision=snapshot.commit))
