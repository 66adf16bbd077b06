"""A checkpoint folder sent to the Hugging Face hub: checked first, then one commit or none.

The hub's client gets open files. So every version of it sends the weights by HTTP (Git LFS), in
the thread that asks it: one way, which our own bar follows and which Ctrl-C ends at once.
"""

import io
import os
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cvt_cli.base import locks
from cvt_cli.base.errors import CheckpointError, CvtError, UnreachableError, UsageError
from cvt_cli.base.package import __version__
from cvt_cli.base.progress import Advance, Progress, Say, unheard
from cvt_cli.base.text import human_bytes
from cvt_cli.checkpoints import cache, upload_checks
from cvt_cli.checkpoints.hub_client import (
    REPOSITORY,
    client,
    endpoint,
    first_line,
    is_network_error,
    model_info,
    never_asks,
    within,
)

SILENT_SEC = 300.0
"""Within which a hub must have taken some more of a file, or answered; it may verify gigabytes."""


@dataclass(frozen=True)
class Pushed:
    """What a hub holds after a push."""

    folder: Path
    repository: str
    url: str
    commit: str
    created: bool  # the repository was made for it
    changed: bool  # False: the hub had the same files already, and no commit was made
    files: dict[str, int]  # size in bytes by name

    def to_json(self) -> dict[str, Any]:
        """The documented keys of ``--json``."""
        return {
            "repository": self.repository,
            "url": self.url,
            "revision": self.commit,
            "created": self.created,
            "changed": self.changed,
            "path": str(self.folder),
            "files": [{"name": name, "bytes": size} for name, size in self.files.items()],
        }


def check_name(repository: str) -> None:
    """Raises UsageError if no hub takes this as the name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
        why = "" if REPOSITORY.fullmatch(repository) else "it is not owner/name"
    except HFValidationError as error:
        why = first_line(error)
    if why:
        raise UsageError(
            f"`{repository}` is not a valid repository name: {why}",
            hint="give account and model name, such as `user/my-cvt`",
        )


def push(
    run: Path, repository: str, *, private: bool = False, say: Say, progress: Progress
) -> Pushed:
    """Send a checkpoint to a hub in one commit; the repository is made if there is none.

    Of a repository that exists, files of other names stay, but for results of ours that the folder
    does not have any more; earlier commits can still be fetched. Interrupted or failed, its branch
    is what it was.

    Args:
        run: a training run, or a checkpoint folder in the hub's form.
        repository: owner/name.
        private: make it a repository that its owner alone sees.
        say: told what is sent, how large it is, to where, and what is there already.
        progress: of the weights, in bytes.

    Raises:
        UsageError: no hub takes that name.
        UnreachableError: the hub is not to be asked, or does not answer in time.
        CheckpointError: see `upload_checks`; or no token, no right to write, a repository that is
            public but should be private, or the upload broke off.
        ConfigError: see `upload_checks.check_folder`.
    """
    check_name(repository)
    folder = upload_checks.checkpoint_of(run)
    alone = partial(locks.folder, folder, f"writing `{folder}`", say)
    with alone():
        upload_checks.check_folder(folder, say)
    before = _ask(repository)
    url = f"{endpoint()}/{repository}"
    if private and before is not None and not before.private:
        raise CheckpointError(
            f"`{repository}` exists and is public; --private is only for a new repository",
            hint=f"make it private on {url}/settings, or push without --private",
        )
    there = _hashes(before)
    with ExitStack() as opened:
        with alone():  # what is sent is of one moment: a training replaces file after file
            files = upload_checks.check_folder(folder, unheard)
            changed = [
                name
                for name in files
                if not (there.get(name) and cache.has_hash(folder / name, there[name]))
            ]
            try:
                sent = {name: opened.enter_context(_Sent(folder / name)) for name in changed}
            except OSError as error:
                raise upload_checks.unreadable(error) from None
        own = upload_checks.OWN_RESULTS
        gone = [own] if own in there and own not in files else []
        if before is not None and not changed and not gone:
            return Pushed(folder, repository, url, str(before.sha), False, False, files)
        size = human_bytes(sum(files[name] for name in changed))
        where = _describe(before, private, changed, gone)
        say(f"pushing {', '.join(changed) or 'no file'} ({size}) of `{folder}` to {url}, {where}")
        commit = _commit(sent, gone, repository, before, private, say, progress)
    return Pushed(folder, repository, url, commit, before is None, True, files)


def _ask(repository: str) -> Any:
    """What the hub has under that name, as its client's record; None if it knows none.

    Raises:
        UnreachableError, CheckpointError: see `push`.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    hint = "nothing was sent; run the same command where the hub can be reached"
    if never_asks():
        raise UnreachableError(
            f"`{repository}` was not pushed to {endpoint()}: HF_HUB_OFFLINE is set", hint
        )
    if huggingface_hub.get_token() is None:
        raise CheckpointError(
            f"no token for {endpoint()}; you need one to write there",
            hint=f"{_new_token()}, then run `hf auth login` or set HF_TOKEN",
        )
    try:
        return model_info(repository, hashes=True)
    except RepositoryNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise _refusal(error, repository) from None
    except ConnectionError as error:
        raise UnreachableError(f"the hub {endpoint()} {error}", hint) from None


def _hashes(before: Any) -> dict[str, str]:
    """SHA-256 of each large file of a hub's record, git's hash of each other, by name."""
    siblings = [] if before is None else before.siblings or []
    return {s.rfilename: (s.lfs.sha256 if s.lfs else s.blob_id) or "" for s in siblings}


def _describe(before: Any, private: bool, changed: list[str], gone: list[str]) -> str:
    """What the push will do to a repository, as the end of a sentence."""
    if before is None:
        return "a new repository, " + (
            "private" if private else "public unless its owner's default is private"
        )
    there = set(_hashes(before)) - {".gitattributes"}
    parts = [f"a {'private' if before.private else 'public'} repository"]
    parts.append(f"as a commit after {before.sha[:7]}")
    kept = there - set(changed) - set(gone)
    for verb, names in (
        ("replacing", there & set(changed)), ("removing", set(gone)), ("keeping", kept),
    ):  # fmt: skip
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            parts.append(f"{verb} {', '.join(sorted(names)[:5])}{more}")
    return ", ".join(parts)


class _Sent(io.BufferedReader):
    """A file that reports how far it was read, once it is to be sent.

    The client reads it to know its hash, and again from the start when a connection breaks.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.advance: Advance | None = None
        self.last_read = 0.0  # by `time.monotonic`
        self.stopped = False  # nothing more of it is to be sent
        self._furthest = 0

    def read(self, size: int | None = -1) -> bytes:
        if self.stopped:
            raise InterruptedError
        data = super().read(size)
        self.last_read = time.monotonic()
        if self.advance is not None and (new := self.tell() - self._furthest) > 0:
            self._furthest += new
            self.advance(new, "")
        return data


def _commit(
    sent: dict[str, _Sent],
    gone: list[str],
    repository: str,
    before: Any,
    private: bool,
    say: Say,
    progress: Progress,
) -> str:
    """Make the repository if need be, send the files, and give the commit that holds them."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api, files = client(), list(sent.values())
    size = sum(os.fstat(file.fileno()).st_size for file in files)
    with warnings.catch_warnings(record=True) as caught:
        try:
            operations = [
                *(CommitOperationAdd(name, file) for name, file in sent.items()),
                *(CommitOperationDelete(name, is_folder=False) for name in gone),
            ]
            if before is None:
                create = partial(api.create_repo, private=private or None, exist_ok=True)
                within(SILENT_SEC, partial(create, repository))
            with progress(repository, size, unit="bytes") as advance:
                for file in files:
                    file.advance = advance
                commit = partial(
                    api.create_commit,
                    repository,
                    operations,
                    commit_message=f"A CvT, pushed by cvt-cli {__version__}",
                    # Whoever pushes at the same time is not overwritten.
                    parent_commit=before.sha if before else None,
                )
                made = within(
                    SILENT_SEC, commit, lambda: max((f.last_read for f in files), default=0.0)
                )
        except KeyboardInterrupt:
            say(
                f"interrupted before the hub confirmed a commit: `{repository}` "
                + ("is unchanged" if before else "may have been created, and is empty")
                + "; run the same command to start again"
            )
            raise
        except Exception as error:
            if (explained := _explain(error, repository)) is None:
                raise
            raise explained from None
        finally:
            for file in files:
                file.stopped = True
    for warning in caught:
        if warning.category is UserWarning:  # of the client, what the hub thinks of the card
            say(" ".join(str(warning.message).split()))
    return str(made.oid)


def _explain(error: BaseException, repository: str) -> CvtError | None:
    """What a user can do about an error of the client; None if it is a bug."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__  # the client wraps what befell one file
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, repository)
    if is_network_error(error):
        return CheckpointError(
            f"the upload to `{repository}` on {endpoint()} was interrupted: {first_line(error)}",
            hint="no commit was made; run the same command again",
        )
    text = " ".join(str(error).split())
    if isinstance(error, ValueError) and text.startswith(("Invalid metadata", "LFS batch")):
        return CheckpointError(f"{endpoint()} rejects the files: {text}")
    return None


def _refusal(error: Any, repository: str) -> CvtError:
    """A sentence for a hub's refusal, with its own words for it."""
    status = getattr(error.response, "status_code", None)
    said = f"{status}: {error.server_message}" if error.server_message else str(status)
    said = " ".join(said.split())
    where = endpoint()
    if status == 401:
        return CheckpointError(
            f"{where} rejects the token ({said})",
            hint=f"{_new_token()}, then run `hf auth login` or set HF_TOKEN",
        )
    if status in (403, 404):
        return CheckpointError(
            f"this token may not write to `{repository}` on {where} ({said})",
            hint=f"`{repository.split('/')[0]}` must be the token's account, or an organisation "
            f"that it may write to; otherwise {_new_token()}",
        )
    if status in (409, 412):
        return CheckpointError(
            f"somebody else changed `{repository}` in the meantime ({said}); nothing was committed",
            hint="check what is there now, then run the same command again",
        )
    later = status is None or status == 429 or status >= 500
    return CheckpointError(
        f"{where} refuses the upload to `{repository}` ({said})",
        hint="no commit was made; run the same command again later" if later else None,
    )


def _new_token() -> str:
    return f"make one with the right to write on {endpoint()}/settings/tokens"
