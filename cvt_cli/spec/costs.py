"""Parameters and multiply-accumulates (MACs) of a CvT by arithmetic, without building it.

Counted are the multiply-accumulates of linear layers, convolutions and the two attention products
(queries with keys, weights with values); norms, activations, softmax, biases and additions are not.
One MAC is two floating-point operations: FLOPs = 2 x MACs. The same rule as
torch.utils.flop_counter. The paper's "FLOPs" are MACs.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from cvt_cli.spec.config import (
    KEY_VALUE_STRIDE,
    PROJECTION_KERNEL,
    CvTConfig,
    StageConfig,
)
from cvt_cli.spec.variants import VARIANTS

Kind = Literal["linear", "convolution", "attention", "other"]


@dataclass(frozen=True)
class Cost:
    """One kind of operation in one stage."""

    stage: int | None  # from 0; None for what follows the last stage
    operation: str
    kind: Kind
    params: int
    macs: int  # for one image


@dataclass(frozen=True)
class Costs:
    """All of a model at one input size, for one image."""

    variant: str  # or the name of the checkpoint
    height: int
    width: int
    num_classes: int
    rows: tuple[Cost, ...]
    paper_params: int | None  # None where the paper gives no number
    paper_macs: int | None

    @property
    def params(self) -> int:
        """Trainable parameters, without BatchNorm's running statistics."""
        return sum(row.params for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return sum(row.macs for row in self.rows)

    @property
    def flops(self) -> int:
        """Floating-point operations, two per multiply-accumulate."""
        return 2 * self.macs

    def to_json(self) -> dict[str, Any]:
        """The documented keys of ``--json``."""
        return {
            "variant": self.variant,
            "height": self.height,
            "width": self.width,
            "num_classes": self.num_classes,
            "params": self.params,
            "macs": self.macs,
            "flops": self.flops,
            "paper_params": self.paper_params,
            "paper_macs": self.paper_macs,
            "rows": [{**asdict(row), "flops": 2 * row.macs} for row in self.rows],
        }


def costs(name: str, config: CvTConfig, height: int, width: int) -> Costs:
    """What a model costs at an input size in pixels.

    Args:
        name: a key of `VARIANTS`, or any other name for a model.
        config: its architecture; the paper's numbers are given only where it is the paper's.
    """
    rows: list[Cost] = []
    in_channels, map_height, map_width = 3, height, width
    for index, stage in enumerate(config.stages):
        map_height, map_width = stage.embedded(map_height), stage.embedded(map_width)
        last = index == len(config.stages) - 1
        rows += _stage(index, stage, in_channels, map_height, map_width, last)
        in_channels = stage.width
    head = (in_channels + 1) * config.num_classes
    rows.append(Cost(None, "final norm", "other", 2 * in_channels, 0))
    rows.append(Cost(None, "head", "linear", head, in_channels * config.num_classes))
    paper_params, paper_macs = None, None
    for variant in VARIANTS.values():
        if config.stages == variant.config.stages and config.num_classes == 1000:
            paper_params = variant.paper_params
            paper_macs = variant.paper_macs.get(height) if height == width else None
    return Costs(name, height, width, config.num_classes, tuple(rows), paper_params, paper_macs)


def _stage(
    index: int, stage: StageConfig, in_channels: int, height: int, width: int, last: bool
) -> list[Cost]:
    c, depth, hidden = stage.width, stage.depth, stage.hidden_width
    patches = height * width
    # A 3x3 convolution with padding 1 and stride 2 makes ceil(n / 2) of n.
    keys = -(-height // KEY_VALUE_STRIDE) * -(-width // KEY_VALUE_STRIDE)
    class_token = 1 if last else 0
    queries, attended = patches + class_token, keys + class_token
    embedding = stage.kernel**2 * in_channels * c
    depthwise = PROJECTION_KERNEL**2 * c

    def cost(operation: str, kind: Kind, params: int, macs: int) -> Cost:
        return Cost(index, operation, kind, params, macs)

    return [
        cost("token embedding", "convolution", embedding + c, embedding * patches),
        cost(
            "depthwise projections q, k, v",
            "convolution",
            depth * 3 * depthwise,
            depth * depthwise * (patches + 2 * keys),
        ),
        cost(
            "linear projections q, k, v, out",
            "linear",
            depth * 4 * (c * c + c),
            depth * c * c * (2 * queries + 2 * attended),
        ),
        cost("attention products", "attention", 0, depth * 2 * queries * attended * c),
        cost(
            "MLP",
            "linear",
            depth * (2 * c * hidden + hidden + c),
            depth * 2 * c * hidden * queries,
        ),
        # LayerNorm after the embedding; per block 3 BatchNorms and 2 LayerNorms, 2 values a channel
        cost(
            "norms and class token" if last else "norms",
            "other",
            2 * c + depth * 10 * c + class_token * c,
            0,
        ),
    ]


def tensor_shapes(config: CvTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a network by its reference name, buffers included."""
    found: dict[str, tuple[int, ...]] = {}
    in_channels, last = 3, len(config.stages) - 1

    def add(name: str, *weight: int, bias: bool = True) -> None:
        found[f"{name}.weight"] = weight
        if bias:
            found[f"{name}.bias"] = weight[:1]

    for index, stage in enumerate(config.stages):
        c, hidden, name = stage.width, stage.hidden_width, f"stage{index}"
        add(f"{name}.patch_embed.proj", c, in_channels, stage.kernel, stage.kernel)
        add(f"{name}.patch_embed.norm", c)
        if index == last:
            found[f"{name}.cls_token"] = (1, 1, c)
        for block in (f"{name}.blocks.{number}" for number in range(stage.depth)):
            add(f"{block}.norm1", c)
            add(f"{block}.norm2", c)
            for which in "qkv":
                conv = f"{block}.attn.conv_proj_{which}"
                add(f"{conv}.conv", c, 1, PROJECTION_KERNEL, PROJECTION_KERNEL, bias=False)
                add(f"{conv}.bn", c)
                found |= {f"{conv}.bn.running_{kind}": (c,) for kind in ("mean", "var")}
                found[f"{conv}.bn.num_batches_tracked"] = ()
                add(f"{block}.attn.proj_{which}", c, c)
            add(f"{block}.attn.proj", c, c)
            add(f"{block}.mlp.fc1", hidden, c)
            add(f"{block}.mlp.fc2", c, hidden)
        in_channels = c
    add("norm", in_channels)
    add("head", config.num_classes, in_channels)
    return found
