"""Class names, and ImageNet's WordNet identifiers (WNID).

``data/imagenet1k.tsv`` lists index, WNID, name and WordNet lemmas of the 1000 classes. It was put
together from the package data of timm (Apache-2.0) and torchvision (BSD-3-Clause); the lemmas are
WordNet's (WordNet license).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from cvt_cli.base.errors import ConfigError
from cvt_cli.base.limits import MOST_CLASSES
from cvt_cli.base.package import DATA
from cvt_cli.spec.config import shown

SEVERAL = "multi_label_classification"
"""What ``problem_type`` in a ``config.json`` says where an image may have several classes."""

THRESHOLDS = "thresholds"
"""What they are called there; transformers keeps them."""

UNTOLD_THRESHOLD = 0.5

_HALF = re.compile("[\ud800-\udfff]")
_IMAGENET = DATA / "imagenet1k.tsv"


@dataclass(frozen=True)
class Labels:
    """The class names of a model in the order of its logits; names need not be unique.

    An image has one class, the likeliest by softmax; or, where there are thresholds, any number of
    classes: those whose sigmoid is at least the class's threshold.
    """

    names: tuple[str, ...]
    wnids: tuple[str | None, ...] | None = None  # None, for a class or all: not ImageNet's
    thresholds: tuple[float, ...] | None = None  # probabilities, one for each class

    def __len__(self) -> int:
        return len(self.names)

    @property
    def several(self) -> bool:
        """Whether an image may have several classes, or none."""
        return self.thresholds is not None

    @property
    def named(self) -> bool:
        """Whether these are names, not the placeholders of `unnamed`."""
        return self.names != unnamed(len(self)).names

    @property
    def are_imagenet(self) -> bool:
        """Whether every class is ImageNet-1k's, in its order."""
        return self.wnids == imagenet_wnids()

    def wnid(self, index: int) -> str | None:
        """WordNet identifier of a class, if it is one of ImageNet's."""
        return self.wnids[index] if self.wnids else None


@cache
def imagenet() -> Labels:
    """ImageNet-1k's classes; their names here are unique."""
    return Labels(tuple(row[2] for row in _imagenet_rows()), imagenet_wnids())


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """ImageNet-1k's WordNet identifiers, in the order of its classes."""
    return tuple(row[1] for row in _imagenet_rows())


def unnamed(num_classes: int) -> Labels:
    """Placeholders as transformers writes them, for a model that does not name its classes.

    Raises:
        ConfigError: a number that no model has.
    """
    if not isinstance(num_classes, int) or not 0 < num_classes <= MOST_CLASSES:
        raise ConfigError(
            f"a head of {shown(num_classes)} classes; accepted are from 1 to {MOST_CLASSES:,}"
        )
    return Labels(tuple(f"LABEL_{index}" for index in range(num_classes)))


def thresholds_of(config: Mapping[str, Any], classes: int) -> tuple[float, ...] | None:
    """Those of a ``config.json``; 0.5 each where it says none, None where an image has one class.

    Raises:
        ConfigError: they are no probabilities, or not one for each class.
    """
    if config.get("problem_type") != SEVERAL:
        return None
    found = config.get(THRESHOLDS, [UNTOLD_THRESHOLD] * classes)
    if (
        not isinstance(found, list)
        or len(found) != classes
        or not all(isinstance(one, int | float) and 0 <= one <= 1 for one in found)
    ):
        raise ConfigError(
            f"`{THRESHOLDS}` is {shown(found)}; it must be a list of {classes} numbers from 0 to "
            "1, one for each class"
        )
    return tuple(map(float, found))


def from_id2label(id2label: Mapping[Any, Any]) -> Labels:
    """The classes of a transformers ``config.json``, by the names that it gives them.

    Raises:
        ConfigError: the indices are not 0 … n - 1, each once, or a name is no text.
    """
    keys: dict[int, Any] = {}
    for key, name in id2label.items():
        if not re.fullmatch("[0-9]{1,9}", str(key)):
            raise ConfigError(
                f"`id2label` has the key {shown(key)}; accepted are the numbers of the classes, "
                "from 0"
            )
        index = int(key)
        if index in keys:
            raise ConfigError(
                f"`id2label` names class {index} twice, under {keys[index]!r} and {key!r}"
            )
        # JSON can write halves of a character, which no file or graph takes.
        if not isinstance(name, str) or _HALF.search(name):
            raise ConfigError(
                f"`id2label` has {shown(name)} as the name of class {index}, not text"
            )
        keys[index] = key
    missing = next((index for index in range(len(keys)) if index not in keys), None)
    if missing is not None:
        raise ConfigError(
            f"`id2label` has {len(keys)} names that are not numbered from 0 to {len(keys) - 1}: "
            f"it has class {max(keys)} and no class {missing}"
        )
    return named(tuple(id2label[keys[index]] for index in range(len(keys))))


def named(names: tuple[str, ...]) -> Labels:
    """Classes by the names that a checkpoint gives them, with the WNIDs that these spell.

    Where all of them spell ImageNet-1k's, in its order, they are `imagenet`, whose names are short
    and unique; one that does not keeps all names as they are, and has no WNID itself.
    """
    if names == _lemmas():  # as the hub's seven have them, which need no comparing
        return imagenet()
    wnids = _wnids(names)
    if wnids == imagenet_wnids():
        return imagenet()
    return Labels(names, wnids if any(wnids) else None)


@cache
def _lemmas() -> tuple[str, ...]:
    return tuple(row[3] for row in _imagenet_rows())


def _wnids(names: tuple[str, ...]) -> tuple[str | None, ...]:
    """For each of 1000 classes ImageNet's WNID of its place, if its name is a spelling of that."""
    if len(names) != len(imagenet_wnids()):
        return (None,) * len(names)
    spellings, places = _spellings()
    spelled = [_words(name) <= known for name, known in zip(names, spellings, strict=True)]

    def is_anothers(index: int) -> bool:
        """Whether the name is the full one of a class that is called something else here.

        So it is where two were swapped: "missile" also spells "projectile, missile".
        """
        owners = places.get(_plain(names[index]), [])
        return index not in owners and not all(spelled[owner] for owner in owners)

    return tuple(
        wnid if right and not is_anothers(index) else None
        for index, (wnid, right) in enumerate(zip(imagenet_wnids(), spelled, strict=True))
    )


@cache
def _spellings() -> tuple[list[frozenset[str]], dict[str, list[int]]]:
    """For each class the words that may stand for it, and by full name the classes that have it."""
    words, places = [], dict[str, list[int]]()
    for index, (_, _, name, lemmas) in enumerate(_imagenet_rows()):
        words.append(_words(name) | _words(lemmas))
        for full in {_plain(name), _plain(lemmas)}:
            places.setdefault(full, []).append(index)
    return words, places


def _words(name: str) -> frozenset[str]:
    return frozenset(_plain(part) for part in name.split(","))


def _plain(name: str) -> str:
    """A name as it is compared: copies of the list differ in case, underscores and spaces."""
    return " ".join(name.replace("_", " ").casefold().split())


@cache
def _imagenet_rows() -> list[list[str]]:
    lines = _IMAGENET.read_text(encoding="utf-8").splitlines()[1:]
    return [line.split("\t") for line in lines]
