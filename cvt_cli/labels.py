"""Class names, and ImageNet's WordNet identifiers (WNID).

``data/imagenet1k.tsv`` lists index, WNID, name and WordNet lemmas of the 1000 classes. It was put
together from the package data of timm (Apache-2.0) and torchvision (BSD-3-Clause); the lemmas are
WordNet's (WordNet licence).
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cvt_cli.errors import ConfigError

_IMAGENET = Path(__file__).parent / "data" / "imagenet1k.tsv"


@dataclass(frozen=True)
class Labels:
    """The class names of a model in the order of its logits; names need not be unique."""

    names: tuple[str, ...]
    wnids: tuple[str, ...] | None = None  # for ImageNet-1k

    def __len__(self) -> int:
        return len(self.names)

    @property
    def named(self) -> bool:
        """Whether these are names, not the placeholders of `unnamed`."""
        return self.names != unnamed(len(self)).names

    def wnid(self, index: int) -> str | None:
        """WordNet identifier of a class, if it is one of ImageNet's."""
        return self.wnids[index] if self.wnids else None


@cache
def imagenet() -> Labels:
    """ImageNet-1k's classes; their names here are unique."""
    rows = _imagenet_rows()
    return Labels(tuple(row[2] for row in rows), tuple(row[1] for row in rows))


def unnamed(num_classes: int) -> Labels:
    """Placeholders as transformers writes them, for a model that does not name its classes."""
    return Labels(tuple(f"LABEL_{index}" for index in range(num_classes)))


def from_id2label(id2label: dict[str, str]) -> Labels:
    """The classes of a transformers ``config.json``; ImageNet's are recognised.

    Raises:
        ConfigError: the indices are not 0 … n - 1.
    """
    try:
        by_index = {int(index): str(name) for index, name in id2label.items()}
    except ValueError as error:
        raise ConfigError(f"`id2label` has a key that is not an integer: {error}") from None
    if sorted(by_index) != list(range(len(by_index))):
        raise ConfigError(f"`id2label` has {len(by_index)} entries that are not numbered from 0")
    names = tuple(by_index[index] for index in range(len(by_index)))
    return imagenet() if _are_imagenet(names) else Labels(names)


def _are_imagenet(names: tuple[str, ...]) -> bool:
    """Whether these are ImageNet's 1000 in its order, by torchvision's name or WordNet's first."""
    if len(names) != 1000:
        return False
    agreeing = sum(
        name == row[2] or name.split(",")[0] == row[3].split(",")[0]
        for name, row in zip(names, _imagenet_rows(), strict=True)
    )
    return agreeing >= 950  # spellings differ between copies of the list; no other list comes near


@cache
def _imagenet_rows() -> list[list[str]]:
    lines = _IMAGENET.read_text(encoding="utf-8").splitlines()[1:]
    return [line.split("\t") for line in lines]
