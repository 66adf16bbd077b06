"""The checkpoints that are known by name: where from, which architecture, which input size.

Sources: the paper (arXiv 2103.15808, table 3), the hub repositories `microsoft/cvt-*`, and the
names of the files that the authors published.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

EMBEDDED = Path(__file__).parent / "data"
"""Folder of the checkpoints that are part of this package."""


@dataclass(frozen=True)
class Checkpoint:
    """One known checkpoint."""

    name: str
    variant: str
    size: int  # input height and width in pixels
    repository: str | None  # on the Hugging Face hub; None: part of this package
    original: str | None  # name of the file that the paper's authors published
    num_classes: int = 1000  # "22k" in a name means the pre-training alone

    @property
    def embedded(self) -> Path | None:
        """Its folder, if it is part of this package."""
        return EMBEDDED / self.name if self.repository is None else None


def _published(variant: str, size: int, pretrained: str = "1k") -> Checkpoint:
    suffix = ("" if size == 224 else f"-{size}") + ("" if pretrained == "1k" else "-22k")
    name = f"cvt-{variant}{suffix}"
    original = f"CvT-{variant}-{size}x{size}-IN-{pretrained}.pth"
    return Checkpoint(name, variant, size, f"microsoft/{name}", original)


CHECKPOINTS: dict[str, Checkpoint] = {
    checkpoint.name: checkpoint
    for checkpoint in (
        _published("13", 224),
        _published("21", 224),
        _published("13", 384),
        _published("21", 384),
        _published("13", 384, "22k"),
        _published("21", 384, "22k"),
        _published("w24", 384, "22k"),
        Checkpoint("cvt-nano-cifar10", "nano", 32, None, None, num_classes=10),
    )
}


def find(name: str) -> Checkpoint | None:
    """The known checkpoint that people also write as `cvt_13_224`, `microsoft/cvt-13` or by file.

    Returns None for any other name.
    """
    wanted = name.strip().lower().replace("_", "-").removeprefix("microsoft/")
    for checkpoint in CHECKPOINTS.values():
        original = (checkpoint.original or "").lower()
        names = {checkpoint.name, f"{checkpoint.name}-224" if checkpoint.size == 224 else ""}
        if original:
            names |= {original, original.removesuffix(".pth")}
        if wanted in names - {""}:
            return checkpoint
    return None


def nearest(name: str) -> list[str]:
    """Known names that look like this one, the likeliest first."""
    return get_close_matches(name.lower().replace("_", "-"), CHECKPOINTS, n=3, cutoff=0.5)
