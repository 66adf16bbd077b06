"""Errors that a user can act on.

    CvtError                 something failed and can be explained: exit code 1
    ├── UsageError           the command line asks for what cannot be: exit code 2
    ├── ConfigError          a config holds a value that no CvT has
    ├── CheckpointError      a checkpoint is missing, damaged, or does not fit the model
    │   └── UnreachableError it is not here, and the hub that has it cannot be reached
    ├── ImageError           one image cannot be read
    └── DataError            a labelled data set is missing or cannot be understood

Anything else that escapes is a bug of ours and keeps its traceback.
"""

import dataclasses
import numbers
import re
from collections.abc import Callable
from typing import Any


class CvtError(Exception):
    """A failure with a sentence for the user and, where there is one, the next step.

    Args:
        message: what failed, the value received and what is accepted.
        hint: what to do next; printed after a blank line as ``hint: …``, and in Python below the
            message.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")


class UsageError(CvtError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_code = 2


class ConfigError(CvtError):
    """A model or preprocessing config holds a value that is not supported."""


class CheckpointError(CvtError):
    """A checkpoint is missing, damaged, unsafe, or does not fit its model."""


class UnreachableError(CheckpointError):
    """A checkpoint is not on this machine, and its hub does not answer or must not be asked."""


class ImageError(CvtError):
    """One image cannot be read; the others still can."""


class DataError(CvtError):
    """A labelled data set is missing, empty, or laid out in a way that is not understood."""


_OUT_OF_MEMORY = (
    "allocate memory",
    "failed to allocate",
    "out of memory",
    "bad alloc",
    "bad_alloc",
)


_COMPILED = re.compile(r"\.(so|dylib|dll|pyd)\b")
"""In what the system's loader says: a library's file."""


def refuse_no_number(what: str, value: object, whole: bool = True) -> None:
    """Raises UsageError for a value from Python that is no number, or no whole one."""
    if not isinstance(value, numbers.Integral if whole else numbers.Real):
        kind = "whole number" if whole else "number"
        raise UsageError(f"{what} is {value!r}; it must be a {kind}")


_KINDS = {str: "a text", bool: "True or False"}


def refuse_other_kind(what: str, value: object, kind: type) -> None:
    """Raises UsageError for a value from Python that is no text, or no flag, as its kind says."""
    if value is not None and not isinstance(value, kind):
        raise UsageError(f"{what} is {value!r}; it must be {_KINDS[kind]}")


def refuse_other_kinds(record: Any, called: Callable[[str], str] = str) -> None:
    """The same for each field of a dataclass that says that it holds one of these.

    Args:
        record: an instance.
        called: gives what messages call a field, from its name.
    """
    for field in dataclasses.fields(record):
        for kind in _KINDS:
            if field.type in (kind, kind | None):
                refuse_other_kind(called(field.name), getattr(record, field.name), kind)


def is_of_memory(error: Exception) -> bool:
    """Whether memory ran out, the machine's or an accelerator's, in the words of any library."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(words in said for words in _OUT_OF_MEMORY)


def of_a_library(error: Exception) -> CvtError | None:
    """What to tell the user where a library's compiled part cannot be loaded, as where little
    memory may be addressed, or where its installation is damaged; None of another error."""
    is_one = isinstance(error, ImportError) or isinstance(error, OSError) and error.errno is None
    if not (is_one and _COMPILED.search(str(error))):
        return None
    return CvtError(
        f"a library cannot be loaded: {error}",
        hint="install its package again; where `ulimit -v` limits the memory, allow more",
    )
