"""The checkpoints that are known by name: where from, which architecture, which input size.

Sources: the paper (arXiv 2103.15808, table 3), the hub repositories `microsoft/cvt-*` and their
cards, the names of the files that the authors published, and PaddleViT's measurements.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from cvt_cli.base.package import DATA

MEASURED_BY = "PaddleViT"
MEASURED_AT = "https://github.com/BR-IDL/PaddleViT"


@dataclass(frozen=True)
class Scores:
    """Accuracies on ImageNet-1k, in per cent.

    The first is in table 3 of the paper. The others were measured on the published weights by
    `MEASURED_BY`.
    """

    paper_top1: float
    top1: float
    top5: float
    real: float  # top-1 with the labels of ImageNet-ReaL
    v2: float  # top-1 on the images of ImageNet-V2


@dataclass(frozen=True)
class KnownCheckpoint:
    """One known checkpoint."""

    name: str
    variant: str
    size: int  # input height and width in pixels
    repository: str | None  # on the Hugging Face hub; None: part of this package
    original: str | None  # name of the file that the paper's authors published
    license: str  # as the model card says; the authors' code and files are under MIT
    num_classes: int = 1000  # "22k" in a name means the pre-training alone
    scores: Scores | None = None  # None: not an ImageNet model
    misstated: int | None = None  # size that its repository's preprocessing file gives, wrongly

    @property
    def embedded(self) -> Path | None:
        """Its folder, if it is part of this package."""
        return DATA / self.name if self.repository is None else None


IMAGENET_VALIDATION = 50_000
"""Images of the set that the published numbers are of."""

AGREEMENT = 0.001
"""How far a measured top-1 may be from a published one, as a fraction, to count as the same."""


def _published(variant: str, size: int, pretrained: str, *scores: float) -> KnownCheckpoint:
    suffix = ("" if size == 224 else f"-{size}") + ("" if pretrained == "1k" else "-22k")
    name = f"cvt-{variant}{suffix}"
    original = f"CvT-{variant}-{size}x{size}-IN-{pretrained}.pth"
    return KnownCheckpoint(
        name, variant, size, f"microsoft/{name}", original, "Apache-2.0", scores=Scores(*scores),
        misstated=224 if name == "cvt-13-384-22k" else None,
    )  # fmt: skip


CHECKPOINTS: dict[str, KnownCheckpoint] = {
    checkpoint.name: checkpoint
    for checkpoint in (
        # variant, pixels, pre-training; the paper's top-1; measured: top-1, top-5, ReaL, V2
        _published("13", 224, "1k", 81.6, 81.59, 95.72, 86.7, 70.4),
        _published("21", 224, "1k", 82.5, 82.52, 96.06, 87.2, 71.3),
        _published("13", 384, "1k", 83.0, 83.00, 96.36, 87.9, 71.9),
        _published("21", 384, "1k", 83.3, 83.27, 96.16, 87.7, 71.9),
        _published("13", 384, "22k", 83.3, 83.26, 97.09, 88.7, 72.9),
        _published("21", 384, "22k", 84.9, 84.91, 97.62, 89.8, 75.6),
        _published("w24", 384, "22k", 87.7, 87.58, 98.47, 90.6, 78.8),
        KnownCheckpoint("cvt-nano-cifar10", "nano", 32, None, None, "MIT", num_classes=10),
    )
}


DEFAULT_MODEL = "cvt-21-384-22k"

WITHOUT_NETWORK = "cvt-nano-cifar10"
"""What `predict` answers with when the default model is not here and its hub does not answer."""


def find(name: str) -> KnownCheckpoint | None:
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


def suggestion(name: str) -> str:
    """A hint for a name that means nothing: what looks like it, else all that is known."""
    if near := nearest(name):
        return f"did you mean {' or '.join(f'`{known}`' for known in near)}?"
    return f"known names are {', '.join(CHECKPOINTS)}; `cvt models` describes them"


def nearest(name: str) -> list[str]:
    """Known names that look like this one, the likeliest first."""
    return get_close_matches(name.lower().replace("_", "-"), CHECKPOINTS, n=3, cutoff=0.5)
