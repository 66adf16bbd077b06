"""What of the logits is explained: a class, or why one class and not another."""

import difflib
from dataclasses import dataclass

import torch
from torch import Tensor

from cvt_cli.base.errors import UsageError
from cvt_cli.base.text import counted
from cvt_cli.spec.labels import Labels

_FEW = 20
"""Classes that a message lists."""


@dataclass(frozen=True)
class Target:
    """A class, by its index among the model's, and another one that it is held against."""

    index: int
    against: int | None = None
    several: bool = False  # an image may have several classes

    def logit(self, logits: Tensor) -> Tensor:
        """The number that is explained, (B,), of logits (B, classes)."""
        found = logits[:, self.index]
        return found if self.against is None else found - logits[:, self.against]

    def probability(self, logits: Tensor) -> Tensor:
        """How likely it is, 0 … 1, (B,); against another class: of these two alone."""
        if self.against is not None or self.several:
            return torch.sigmoid(self.logit(logits))
        return logits.softmax(-1)[:, self.index]


def index_of(text: str | int, labels: Labels) -> int:
    """The class that a name, a WNID or an index means, in this order; of a number the index alone.

    Names that several classes have, and parts of a name between its commas, count if they mean one
    class alone.

    Raises:
        UsageError: none or several.
    """
    if not isinstance(text, str):
        return _existing(int(text), labels)
    wanted = text.strip().casefold()
    for names in (
        [name.casefold() for name in labels.names],
        [labels.wnid(index) for index in range(len(labels))],
    ):
        found = [index for index, name in enumerate(names) if name == wanted]
        if found:
            return _one_of(found, text)
    if wanted.isdecimal() and len(wanted) < 20:  # `int` reads no more than some thousand digits
        return _existing(int(wanted), labels)
    parts = [
        index
        for index, name in enumerate(labels.names)
        if wanted in (part.strip().casefold() for part in name.split(","))
    ]
    if parts:
        return _one_of(parts, text)
    names = list(labels.names)
    near = difflib.get_close_matches(text, names, n=3)
    told = ", ".join(f"`{name}`" for name in (names if len(names) <= _FEW else near))
    raise UsageError(
        f"this model has no class `{text}`" + (f"; it has {told}" if told else ""),
        hint="a class is called by its name, its WNID or its index, counted from 0",
    )


def pair_of(text: str, labels: Labels) -> tuple[int, int]:
    """The two classes that ``A,B`` means; a name may have commas of its own.

    Raises:
        UsageError: they are not two, or not of this model.
    """
    parts = text.split(",")
    if len(parts) < 2:
        raise UsageError(f"--against `{text}` names one class; accepted are two, as `cat,dog`")
    failure: UsageError | None = None
    for place in range(1, len(parts)):
        try:
            first, second = (
                index_of(",".join(some), labels) for some in (parts[:place], parts[place:])
            )
        except UsageError as error:
            failure = failure or error
            continue
        if first == second:
            raise UsageError(f"--against `{text}` names the same class twice")
        return first, second
    assert failure is not None
    raise failure


def _existing(index: int, labels: Labels) -> int:
    if 0 <= index < len(labels):
        return index
    raise UsageError(
        f"there is no class {index}; this model has {counted(len(labels), 'class')}, counted from 0"
    )


def _one_of(found: list[int], text: str) -> int:
    if len(found) > 1:
        raise UsageError(
            f"`{text}` means several classes, {', '.join(map(str, found))}; give the index of one"
        )
    return found[0]
