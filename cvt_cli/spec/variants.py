"""The architectures that have a name, each with all that belongs to it: one record per variant.

To add a variant is to add a record here; nothing else asks for one by its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cvt_cli.base.errors import UsageError
from cvt_cli.spec.config import CvTConfig, Size, StageConfig
from cvt_cli.spec.preprocessing import Preprocessing


@dataclass(frozen=True)
class Variant:
    """An architecture with a name."""

    config: CvTConfig
    preprocessing: Preprocessing  # of a network that is trained from scratch, with its input size
    weight_decay: float  # of the official code's recipe for ImageNet-1k
    paper_params: int | None = None  # in the paper's tables 2 and 3, with 1000 classes
    paper_macs: Mapping[int, int] = field(default_factory=dict)  # there, by input size in pixels

    @property
    def size(self) -> Size:
        """Input height and width in pixels when ``--res`` does not say."""
        return self.preprocessing.size

    @property
    def sizes(self) -> list[Size]:
        """The sizes that its costs are listed for: the paper's, else its own."""
        return [Size.square(side) for side in self.paper_macs] or [self.size]


def _published(
    widths: tuple[int, int, int],
    depths: tuple[int, int, int],
    heads: tuple[int, int, int],
    drop_path: float,
) -> CvTConfig:
    """A variant of the paper's table 1: 7/4/2 then 3/2/1 embeddings, stochastic depth last."""
    embeddings = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
    rates = (0.0, 0.0, drop_path)
    return CvTConfig(
        tuple(
            StageConfig(width, depth, head, *embedding, drop_path=rate)
            for width, depth, head, embedding, rate in zip(
                widths, depths, heads, embeddings, rates, strict=True
            )
        )
    )


VARIANTS: dict[str, Variant] = {
    "13": Variant(
        _published((64, 192, 384), (1, 2, 10), (1, 3, 6), drop_path=0.1),
        Preprocessing.published(224, 224),
        weight_decay=0.05,
        paper_params=19_980_000,
        paper_macs={224: 4_530_000_000, 384: 16_300_000_000},
    ),
    "21": Variant(
        _published((64, 192, 384), (1, 4, 16), (1, 3, 6), drop_path=0.1),
        Preprocessing.published(224, 224),
        weight_decay=0.1,
        paper_params=31_540_000,
        paper_macs={224: 7_130_000_000, 384: 24_900_000_000},
    ),
    "w24": Variant(
        _published((192, 768, 1024), (2, 2, 20), (3, 12, 16), drop_path=0.3),
        Preprocessing.published(224, 224),
        weight_decay=0.1,
        paper_params=276_700_000,
        paper_macs={224: 60_860_000_000, 384: 193_200_000_000},
    ),
    # Ours, for images of about 32 pixels, of which it sees all: it starts at half of the image's
    # resolution, not at a quarter. Its ten classes are CIFAR-10's.
    "nano": Variant(
        CvTConfig(
            (
                StageConfig(32, 1, 1, 5, 2, 2, mlp_ratio=2.0),
                StageConfig(64, 2, 2, 3, 2, 1, mlp_ratio=2.0),
                StageConfig(160, 3, 5, 3, 2, 1, mlp_ratio=2.0, drop_path=0.1),
            ),
            num_classes=10,
        ),
        Preprocessing(32, 32, "crop", crop_pct=1.0),
        weight_decay=0.05,
    ),
}


def names() -> str:
    """The names of all variants, as help and hints list them."""
    *first, last = VARIANTS
    return f"{', '.join(first)} or {last}"


def variant_of(config: CvTConfig) -> str | None:
    """The variant that a config is, whatever its classes, activation and stochastic depth."""

    def plan(config: CvTConfig) -> list[StageConfig]:
        return [replace(stage, drop_path=0.0) for stage in config.stages]

    return next((key for key, v in VARIANTS.items() if plan(v.config) == plan(config)), None)


def preprocessing_of(config: CvTConfig, size: Size | None) -> Preprocessing:
    """What a network is trained with from scratch; one of no known variant as the published are.

    Args:
        config: of the network.
        size: input height and width in pixels; None for its own.
    """
    variant = variant_of(config)
    own = VARIANTS[variant].preprocessing if variant else Preprocessing.published(224, 224)
    return own.with_size(size) if size else own


def _plain(text: str) -> str:
    return text.strip().lower().replace("_", "-").removeprefix("cvt-")


def is_variant(text: str) -> bool:
    """Whether a text is the name of a variant, in any of its spellings."""
    return _plain(text) in VARIANTS


def parse_variant(text: str) -> str:
    """The key in `VARIANTS` of ``13``, ``cvt-13``, ``CvT-W24``, …

    Raises:
        UsageError: there is no such variant.
    """
    name = _plain(text)
    if name not in VARIANTS:
        known = ", ".join(f"`{variant}`" for variant in VARIANTS)
        raise UsageError(f"there is no variant `{text}`; accepted are {known}")
    return name
