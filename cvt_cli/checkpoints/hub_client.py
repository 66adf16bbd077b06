"""The hub's client: set up, asked once, answered in time; for what is fetched and what is sent."""

import os
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from cvt_cli.base.package import __version__
from cvt_cli.checkpoints import cache

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""Owner and name, as every repository of the hub has them."""

REACHABLE_SEC = 3.0
"""How long the hub may take to answer the first question; ``HF_HUB_ETAG_TIMEOUT`` overrules."""

_Answer = TypeVar("_Answer")


def endpoint() -> str:
    """The hub's address, ``HF_ENDPOINT`` or the public one."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def never_asks() -> bool:
    """Whether ``HF_HUB_OFFLINE`` (or ``TRANSFORMERS_OFFLINE``) forbids the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def client() -> "HfApi":
    """The hub's client, set up so that what matters is said here."""
    import huggingface_hub

    _set_up_client()
    return huggingface_hub.HfApi(library_name="cvt-cli", library_version=__version__)


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
    # By default 10 MB: so much would be lost at every break, so rarely would a bar move, and a slow
    # line would be taken for a dead one.
    constants.DOWNLOAD_CHUNK_SIZE = 1 << 16


def model_info(
    repository: str, revision: str | None = None, *, hashes: bool = False
) -> "ModelInfo":
    """What a hub says of a repository: commit, file names; asked once, answered in time.

    Args:
        repository: owner/name.
        revision: by default ``main``.
        hashes: of the files too, which takes a hub longer.

    Raises:
        ConnectionError: no hub answers; the message says in which way, without naming the hub.
        HfHubHTTPError: it answers something else, by the client's own subclasses.
        HFValidationError: no hub takes such a name.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    timeout = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or REACHABLE_SEC)
    api = client()
    ask = partial(
        api.model_info,
        repository,
        revision=revision,
        timeout=timeout + 1,  # it is `within` that gives up
        files_metadata=hashes,
    )
    try:
        found = within(timeout, ask)
    except (HfHubHTTPError, HFValidationError):
        raise
    except _Late as error:
        raise ConnectionError(str(error)) from None
    except Exception as error:
        raise ConnectionError(f"cannot be reached: {first_line(error)}") from None
    if not cache.is_hash(str(found.sha)):
        raise ConnectionError("does not answer like a Hugging Face hub")
    return found


class _Late(TimeoutError):
    """The time is up."""


def within(
    seconds: float, ask: Callable[[], _Answer], last_sign: Callable[[], float] = lambda: 0.0
) -> _Answer:
    """What a call of the client gives, or raises, if it does so in time.

    In a thread, since looking up a name takes as long as the system likes, and an answer whose
    bytes come one by one as long as the server likes.

    Args:
        seconds: from now, or from the last sign of it.
        ask: the call.
        last_sign: when it last got on, by `time.monotonic`.

    Raises:
        TimeoutError: it does not.
    """
    answers: list[_Answer] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # raised below, in the thread that asked
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    begun = time.monotonic()
    thread.start()
    while thread.is_alive():
        left = max(begun, last_sign()) + seconds - time.monotonic()
        if left <= 0:
            break
        thread.join(left)
    for error in errors:
        raise error
    for answer in answers:
        return answer
    raise _Late(f"did not answer within {seconds:g} s")


def is_network_error(error: BaseException) -> bool:
    """Whether a connection failed, not the disk: the client lets its HTTP library's errors through.

    That is httpx, or requests, whose errors are OSErrors without a number.
    """
    if isinstance(error, OSError):
        return error.errno is None or isinstance(error, ConnectionError | TimeoutError)
    return type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3"))


def first_line(error: BaseException) -> str:
    """What an error says, without what follows in further lines."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
