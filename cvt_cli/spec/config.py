"""What a CvT is made of: one frozen value per architecture (paper, table 1).

Costs, model, weights and model cards derive from these values; `variants` has those with a name.
Only what published CvTs use can be written down here: depthwise convolutional projections with
BatchNorm (kernel 3, stride 1 for queries and 2 for keys and values), a class token in the last
stage alone, no position embedding.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from cvt_cli.base.errors import ConfigError, UsageError
from cvt_cli.base.limits import (
    LARGEST_KERNEL,
    LARGEST_MLP_RATIO,
    LARGEST_SIZE,
    LARGEST_WIDTH,
    MOST_BLOCKS,
    MOST_CLASSES,
    MOST_STAGES,
)

Activation = Literal["quick_gelu", "gelu"]

PROJECTION_KERNEL = 3
"""Kernel of the depthwise convolutions before q, k and v; padding 1."""

KEY_VALUE_STRIDE = 2
"""Stride of the depthwise convolutions before k and v; the one before q has stride 1."""

SMALLEST_SIZE = 32
"""Smallest input height and width in pixels that the tool accepts."""


@dataclass(frozen=True)
class StageConfig:
    """One stage: a convolutional token embedding, then ``depth`` blocks."""

    width: int  # channels of every token in this stage
    depth: int  # blocks
    heads: int  # attention heads; each is width / heads wide
    kernel: int = 3  # token embedding: kernel, stride and padding in pixels of the incoming map
    stride: int = 2
    padding: int = 1
    mlp_ratio: float = 4.0  # hidden width of the MLP / width
    drop_path: float = 0.0  # stochastic depth at the last block; rises linearly from 0 at the first

    def __post_init__(self) -> None:
        for name, most in (
            ("width", LARGEST_WIDTH),
            ("depth", MOST_BLOCKS),
            ("heads", LARGEST_WIDTH),
            ("kernel", LARGEST_KERNEL),
            ("stride", LARGEST_KERNEL),
        ):
            if not _is_count(getattr(self, name), most):
                raise ConfigError(
                    f"stage `{name}` is {shown(getattr(self, name))}; it must be a positive "
                    f"integer of at most {most:,}"
                )
        if not (isinstance(self.padding, int) and 0 <= self.padding <= self.kernel // 2):
            raise ConfigError(
                f"stage `padding` is {shown(self.padding)}; "
                f"it must be from 0 to half of the kernel ({self.kernel // 2})"
            )
        if self.width % self.heads:
            raise ConfigError(
                f"stage `width` {self.width} cannot be split into {self.heads} heads of equal width"
            )
        if not 0 < self.mlp_ratio <= LARGEST_MLP_RATIO or self.hidden_width < 1:
            raise ConfigError(
                f"stage `mlp_ratio` is {shown(self.mlp_ratio)}; it must be positive, and at most "
                f"{LARGEST_MLP_RATIO}"
            )
        if not 0 <= self.drop_path < 1:
            raise ConfigError(
                f"stage `drop_path` is {shown(self.drop_path)}; it must be at least 0 and below 1"
            )

    @property
    def hidden_width(self) -> int:
        """Hidden width of the MLP."""
        return int(self.width * self.mlp_ratio)

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Stochastic depth per block, linear from 0 to ``drop_path`` (reference: cls_cvt.py)."""
        last = max(self.depth - 1, 1)
        return tuple(self.drop_path * block / last for block in range(self.depth))

    def embedded(self, size: int) -> int:
        """Height or width of the token map that this stage makes of a map ``size`` wide."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1


@dataclass(frozen=True)
class CvTConfig:
    """A whole network: its stages, the number of classes and the MLP's activation."""

    stages: tuple[StageConfig, ...]
    num_classes: int = 1000
    activation: Activation = "quick_gelu"

    def __post_init__(self) -> None:
        if not 1 <= len(self.stages) <= MOST_STAGES:
            raise ConfigError(f"{len(self.stages)} stages; a CvT has from 1 to {MOST_STAGES}")
        if not _is_count(self.num_classes, MOST_CLASSES):
            raise ConfigError(
                f"`num_classes` is {shown(self.num_classes)}; it must be a positive integer of at "
                f"most {MOST_CLASSES:,}"
            )
        if self.activation not in get_args(Activation):
            raise ConfigError(
                f"`activation` is {shown(self.activation)}; accepted are `quick_gelu` and `gelu`"
            )

    def check_size(self, height: int, width: int) -> None:
        """Raises ConfigError if no token would be left of an input of this size in pixels."""
        map_height, map_width = height, width
        for index, stage in enumerate(self.stages):
            map_height, map_width = stage.embedded(map_height), stage.embedded(map_width)
            if map_height < 1 or map_width < 1:
                raise ConfigError(
                    f"an input of {height}x{width} pixels is too small for this network: its "
                    f"stage {index} would have {max(0, map_height)}x{max(0, map_width)} tokens"
                )

    @property
    def smallest_traced(self) -> int:
        """Pixels of the smallest side that a graph traced by PyTorch at a larger size runs at.

        Below, a map of keys has the length 1, which `torch.export` takes for another program.
        """
        side = 1
        for stage in reversed(self.stages):
            side = max(side, KEY_VALUE_STRIDE + 1)
            side = (side - 1) * stage.stride + stage.kernel - 2 * stage.padding
        return max(side, SMALLEST_SIZE)

    def with_classes(self, num_classes: int) -> "CvTConfig":
        """The same network with another number of classes."""
        return replace(self, num_classes=num_classes)

    def with_activation(self, activation: Activation | None) -> "CvTConfig":
        """The same network with another activation; with None, as it is."""
        return self if activation is None else replace(self, activation=activation)


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most


def shown(value: object) -> str:
    """A value of a stranger's file as a message shows it."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested deeply, or a number of too many digits
        text = f"of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:59]}…"


class Size(NamedTuple):
    """Height and width of images in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @classmethod
    def square(cls, side: int) -> "Size":
        return cls(side, side)

    @classmethod
    def of(cls, text: str | None) -> "Size | None":
        """The size that ``384`` or ``384x512`` (height x width) says; None of None.

        Raises:
            UsageError: not one or two integers, or one that no network here takes.
        """
        if text is None:
            return None
        parts = text.strip().lower().replace("×", "x").split("x")
        if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
            raise UsageError(
                f"`{text}` is not an input size; accepted are pixels such as `384`, "
                "or height x width such as `384x512`"
            )
        if any(len(part.strip()) > 9 for part in parts):
            raise UsageError(
                f"input size `{text}` is too large; height and width must be at most "
                f"{LARGEST_SIZE} pixels"
            )
        size = cls(int(parts[0]), int(parts[-1]))
        if min(size) < SMALLEST_SIZE:
            raise UsageError(
                f"input size {size} is too small; "
                f"height and width must be at least {SMALLEST_SIZE} pixels"
            )
        if max(size) > LARGEST_SIZE:
            raise UsageError(
                f"input size {size} is too large; "
                f"height and width must be at most {LARGEST_SIZE} pixels"
            )
        return size
