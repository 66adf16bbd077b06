"""Preprocessing as a graph: `pixels`, uint8 RGB (B, H, W, 3) of any size, to a network's `images`.

What `images.preprocess` does with Pillow, in operations that every runtime has and computes alike:
a resize along one axis is a product with a matrix of Pillow's weights, rounded to 8 bits. Pillow
resizes along the width and then the height, but the other way round where the height shrinks by
more than twice the pixels of the width (src/libImaging/Resample.c of Pillow 13); here both are
computed and one is taken. Grey levels differ by one here and there, since Pillow computes with
integers.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cvt_cli.base.errors import UsageError
from cvt_cli.spec.preprocessing import Preprocessing


def require(preprocessing: Preprocessing) -> None:
    """Raises UsageError if this preprocessing cannot be part of a graph."""
    if preprocessing.interpolation != "bicubic":
        raise UsageError(
            f"this model resizes images with `{preprocessing.interpolation}`; "
            "an exported file can only do `bicubic`",
            hint="export without --with-preprocessing",
        )


class InsidePreprocessing(nn.Module):
    """Pixels to images as a module that exporters can trace: sizes are unknown, nothing branches.

    All images of a batch have one size.
    """

    mean: Tensor  # (3, 1, 1)
    std: Tensor
    fill: Tensor  # (3, 1, 1) the colour around what does not fill the input

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        require(preprocessing)
        self.record = preprocessing
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None])
        self.register_buffer("fill", torch.tensor(preprocessing.fill).float()[:, None, None])
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels, uint8 (B, H, W, 3), to images, float32 (B, 3, height, width), normalised."""
        height, width = self.record.height, self.record.width
        h, w = pixels.shape[1:3]
        new_h: Any  # an int, or what torch.export knows of one
        new_w: Any
        if self.record.resize == "squash":
            new_h, new_w = height, width
        elif self.record.resize == "pad":
            # One side fills the input; that one comes out as it, or larger.
            new_h = torch.sym_max(1, torch.sym_min(height, h * width // w))
            new_w = torch.sym_max(1, torch.sym_min(width, w * height // h))
        else:
            shorter, least = self.record.shorter_side, torch.sym_min(h, w)
            new_h, new_w = h * shorter // least, w * shorter // least
        pad = self.record.resize == "pad"
        rows = _weights(h, new_h, height, pad)
        columns = _weights(w, new_w, width, pad).T
        x = pixels.permute(0, 3, 1, 2).float()
        width_first = _in_8_bits(rows @ _in_8_bits(x @ columns))
        height_first = _in_8_bits(_in_8_bits(rows @ x) @ columns)
        shrinks: Tensor = (h - new_h) * torch.ones(())
        x = torch.where((shrinks > 0) & (shrinks > 2 * (w - new_w)), height_first, width_first)
        if pad:
            inside = _inside(new_h, height)[:, None] & _inside(new_w, width)
            x = torch.where(inside, x, self.fill)
        return (x / 255 - self.mean) / self.std


def _start(new: Any, size: int, pad: bool) -> Any:
    """Where the ``size`` in the middle of ``new`` begins; with ``pad`` not above 0.

    As Python rounds halves, of numbers that are not below 0: runtimes divide others otherwise.
    """
    apart = size - new if pad else new - size
    half = apart // 2
    middle = half + (apart % 2) * (half % 2)
    return -middle if pad else middle


def _inside(new: Any, size: int) -> Tensor:
    """Which (size,) of an axis of a padded input lie on the picture that is resized to ``new``."""
    places = torch.arange(size) + _start(new, size, pad=True)
    return (places >= 0) & (places < new)


def _weights(length: int, new: int, size: int, pad: bool) -> Tensor:
    """The weights (size, length) that resize an axis to ``new``, for its ``size`` in the middle."""
    places = torch.arange(size) + _start(new, size, pad) + 0.5
    centres = places * length / new
    scale = torch.clamp(torch.ones(()) * length / new, min=1.0)
    distance = ((torch.arange(length) + 0.5)[None] - centres[:, None]).abs() / scale
    near = (1.5 * distance - 2.5) * distance * distance + 1  # Keys' cubic with a = -0.5
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    # Far outside of the picture, where "pad" puts its colour, all are 0.
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-6)


def _in_8_bits(x: Tensor) -> Tensor:
    return (x + 0.5).floor().clamp(0, 255)
