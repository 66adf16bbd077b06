"""Maps from attention: of each block and head, rolled out, and weighted by gradients.

Keys lie at half the resolution of the tokens: each is a 3x3 convolution of them with stride 2. What
a query gives to a key is shared among the tokens under it, so that rows still sum to 1 and blocks
can be multiplied. Along each axis the middle token gets twice as much as those at its sides, which
two keys share: so a query that gives the same to every key gives the same to every token, but at
the border.

Notation as in `model.network`: N tokens and K keys, the class token first in each.
"""

import torch
from torch import Tensor

from cvt_cli.spec.config import KEY_VALUE_STRIDE

Shape = tuple[int, int]


def to_tokens(attention: Tensor, shape: Shape) -> Tensor:
    """Attention to keys (…, K) shared among the tokens under them, (…, N); sums stay.

    Args:
        attention: with the class token's key in front.
        shape: height and width of the token map.
    """
    down, across = (_under(length).to(attention) for length in shape)  # (keys, tokens)
    keys = attention[..., 1:].unflatten(-1, (len(down), len(across)))
    patches = torch.einsum("...ij,iy,jx->...yx", keys, down, across)
    return torch.cat((attention[..., :1], patches.flatten(-2)), dim=-1)


def _under(length: int) -> Tensor:
    """Along an axis of so many tokens, the shares (keys, tokens) of those under each key."""
    keys = (length - 1) // KEY_VALUE_STRIDE + 1
    middles = KEY_VALUE_STRIDE * torch.arange(keys, dtype=torch.float64)
    away = (middles[:, None] - torch.arange(length)).abs()
    near = (1 - away / KEY_VALUE_STRIDE).clamp(min=0)
    return near / near.sum(1, keepdim=True)


def of_heads(blocks: list[Tensor], shape: Shape) -> Tensor:
    """What the class token gives to the keys, by block and head, of one image.

    Args:
        blocks: attention of the last stage's blocks, each (1, h, N or 1, K).
        shape: height and width of the token map.

    Returns:
        (blocks, h, rows, columns) of the keys, without the class token's own.
    """
    rows = torch.stack([attention[0, :, 0, 1:] for attention in blocks])
    return rows.unflatten(-1, tuple((side - 1) // KEY_VALUE_STRIDE + 1 for side in shape))


def rollout(blocks: list[Tensor], shape: Shape) -> Tensor:
    """Attention rolled out over the blocks (Abnar and Zuidema 2020), (H, W), of one image.

    Heads are averaged, and each block is half its attention and half the residual stream.
    """
    row = _class_token(shape).to(blocks[0])
    for attention in reversed(blocks):
        mean = attention[0].mean(0)  # (N, K), or (1, K) of the last block
        row = (row + to_tokens(row[: len(mean)] @ mean, shape)) / 2
    return row[1:].unflatten(0, shape)


def relevance(blocks: list[Tensor], gradients: list[Tensor], shape: Shape) -> Tensor:
    """Gradient times attention through the blocks (Chefer et al. 2021), (H, W), of one image.

    R = R + E[(gradient * attention)+] R from the first block to the last, of which only the class
    token's row is computed, from the last to the first.

    Args:
        blocks: attention of the last stage's blocks, each (1, h, N or 1, K).
        gradients: of what is explained by each.
        shape: height and width of the token map.
    """
    row = _class_token(shape).to(blocks[0])
    for attention, gradient in zip(reversed(blocks), reversed(gradients), strict=True):
        weighted = (gradient * attention)[0].clamp(min=0).mean(0)  # (N, K)
        row = row + to_tokens(row[: len(weighted)] @ weighted, shape)
    return row[1:].unflatten(0, shape)


def _class_token(shape: Shape) -> Tensor:
    row = torch.zeros(1 + shape[0] * shape[1])
    row[0] = 1
    return row
