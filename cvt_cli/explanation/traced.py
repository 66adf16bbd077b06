"""The network in its training form, run so that what explanations need is kept.

The inference form computes only the class token in its last block and keeps nothing. Here attention
is computed step by step, and the maps on the way can be asked for, and their gradients. The logits
are the same up to rounding, which a test holds.

Notation as in `model.network`.
"""

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from cvt_cli.model.network import Block, CvT, Stage


@dataclass
class Trace:
    """What was kept of one pass."""

    logits: Tensor  # (B, classes)
    # By stage and block: (B, h, N, K); of the last block one query, (B, h, 1, K), unless all are
    # asked for.
    attention: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    maps: dict[int, Tensor] = field(default_factory=dict)  # by stage, what went through its tap


class TracedCvT(nn.Module):
    """A `CvT` that is explained: images (B, 3, H, W), normalised, to logits (B, classes).

    Its weights need no gradients, and are not copied.

    Attributes:
        taps: for each stage a module through which the map goes that stands for it, (B, C, H, W):
            what the stage gives to the next one; of the last stage the patch tokens that its last
            block reads. After that block they have no gradient: the head reads the class token.
    """

    def __init__(self, model: CvT) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.config = model.config
        self.taps = nn.ModuleList(nn.Identity() for _ in model.config.stages)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, with all that autograd needs from the input on, if that needs a gradient."""
        return self.trace(x).logits

    def trace(
        self,
        x: Tensor,
        keep: int | None = None,
        all_queries: bool = False,
        gradients_from: int | None = None,
    ) -> Trace:
        """One pass.

        Args:
            x: images (B, 3, H, W), normalised.
            keep: the first stage whose attention is kept; by default none is.
            all_queries: compute the last block's other tokens too, which the head does not read.
            gradients_from: the stage before which autograd is off, so that it costs nothing there;
                what this stage reads is the first that has a gradient.
        """
        found = Trace(x)
        last = len(self.config.stages) - 1
        for index in range(last + 1):
            stage = cast(Stage, self.model.get_submodule(f"stage{index}"))
            kept = keep is not None and index >= keep
            with torch.set_grad_enabled(
                torch.is_grad_enabled() and (gradients_from is None or index >= gradients_from)
            ):
                if index == gradients_from and not x.requires_grad:
                    x = x.detach().requires_grad_()
                    if index:
                        found.maps[index - 1] = x
                x = self._stage(stage, x, index, found, kept, all_queries)
        found.logits = self.model.head(self.model.norm(x[:, 0]))
        return found

    def _stage(
        self, stage: Stage, x: Tensor, index: int, found: Trace, kept: bool, all_queries: bool
    ) -> Tensor:
        """A map (B, C_in, H_in, W_in) to a map (B, C, H, W), or to tokens (B, N, C)."""
        x = stage.patch_embed(x)  # (B, H, W, C)
        height, width = x.shape[1:3]
        x = x.flatten(1, 2)
        if stage.cls_token is not None:
            x = torch.cat((stage.cls_token.expand(len(x), -1, -1), x), dim=1)  # (B, N, C)
        for number, block in enumerate(stage.blocks):
            is_last = stage.cls_token is not None and number == len(stage.blocks) - 1
            if is_last:
                token_map = self._tapped(x[:, 1:], height, width, index, found)
                x = torch.cat((x[:, :1], token_map.flatten(2).transpose(1, 2)), dim=1)
            alone = is_last and not all_queries
            x, attention = _through(cast(Block, block), x, height, width, alone)
            if kept:
                found.attention[index, number] = attention
        return x if stage.cls_token is not None else self._tapped(x, height, width, index, found)

    def _tapped(self, x: Tensor, height: int, width: int, index: int, found: Trace) -> Tensor:
        """Tokens (B, T, C) as the map that stands for a stage, (B, C, H, W)."""
        found.maps[index] = self.taps[index](x.unflatten(1, (height, width)).permute(0, 3, 1, 2))
        return found.maps[index]


def _through(
    block: Block, x: Tensor, height: int, width: int, class_token_alone: bool
) -> tuple[Tensor, Tensor]:
    """Tokens (B, N, C), or the class token alone, and the block's attention (B, h, N, K)."""
    q, k, v = block.attn.projected(block.norm1(x), height, width, class_token_alone)
    attention = (q @ (k * block.attn.scale).transpose(-2, -1)).softmax(dim=-1)
    x = x[:, :1] if class_token_alone else x
    x = x + block.attn.joined(attention @ v)
    return x + block.mlp(block.norm2(x)), attention
