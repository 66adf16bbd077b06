"""CvT, the Convolutional vision Transformer, in its training form.

Paper: Wu et al., "CvT: Introducing Convolutions to Vision Transformers", arXiv 2103.15808.
Official code: github.com/microsoft/CvT, lib/models/cls_cvt.py. Modules and parameters carry its
names, so that an original state dict loads as it is, and its logits are reproduced.

At 224 x 224, CvT-13 turns an image (B, 3, 224, 224) into

    stage 0   (B,  64, 56, 56)   3136 queries,     784 keys and values
    stage 1   (B, 192, 28, 28)    784 queries,     196 keys and values
    stage 2   (B, 384, 14, 14)    196 + 1 queries,  49 + 1 keys and values; the 1 is the class token

Notation used for tensor shapes:
    B  batch         C  width of the stage   H, W  height and width of the token map
    T  H * W         N  tokens: T, plus 1 in the last stage, where the class token comes first
    h  heads         d  C / h                K  keys and values: T / 4, plus the class token

What differs from the official code, with equal results: attention runs through PyTorch's
scaled_dot_product_attention, QuickGELU is a SiLU with its constant folded into the neighbouring
weights, and a batch of one keeps its batch axis.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvt_cli.config import KEY_VALUE_STRIDE, PROJECTION_KERNEL, CvTConfig, StageConfig

QUICK_GELU_SCALE = 1.702


EXPLICIT_ATTENTION_BYTES = {4: 2**24, 2: 2**27}
"""Size of all scores up to which a CPU computes attention step by step, by bytes per number.

There PyTorch's scaled_dot_product_attention takes 1.5 to 5 times as long, forward and backward;
above it the scores no longer fit the caches (float32) or would take much memory (bfloat16).
"""


def _float32_on_cpu(x: Tensor) -> tuple[Tensor, AbstractContextManager[object]]:
    """Keep what follows in float32 when autocast runs on a CPU.

    There the bfloat16 backward of strided convolutions is 5 to 10 times slower than the float32
    one; the linear layers and attention, where the work is, stay in bfloat16.
    """
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return x.float(), torch.autocast("cpu", enabled=False)
    return x, nullcontext()


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: zero a residual branch for a random part of the batch, scale the rest.

    Args:
        x: a residual branch (B, …), before it is added to the stream.
        rate: probability that a sample's branch is dropped.
        training: without it, ``x`` comes back as it is.
    """
    if not training or rate == 0.0:
        return x
    keep = 1.0 - rate
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
    return x * mask.div_(keep)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v for q (B, h, N, d) and k, v (B, h, K, d), to (B, h, N, d)."""
    scores_bytes = q[..., 0].numel() * k.shape[2] * q.element_size()
    if q.device.type != "cpu" or scores_bytes > EXPLICIT_ATTENTION_BYTES.get(q.element_size(), 0):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    return ((q * scale) @ k.transpose(-2, -1)).softmax(dim=-1) @ v


class ConvEmbed(nn.Module):
    """Convolutional token embedding: a strided convolution, then LayerNorm (paper, section 3.1)."""

    def __init__(self, in_channels: int, stage: StageConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, stage.width, stage.kernel, stage.stride, stage.padding)
        self.norm = nn.LayerNorm(stage.width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """An image or token map (B, C_in, H_in, W_in) to a token map (B, H, W, C)."""
        x, full_precision = _float32_on_cpu(x)
        with full_precision:
            x = self.proj(x)  # (B, C, H, W)
        return self.norm(x.permute(0, 2, 3, 1))  # (B, H, W, C)


class ConvProjection(nn.Module):
    """Depthwise 3x3 convolution and BatchNorm before q, k or v (paper, section 3.2)."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            width,
            width,
            PROJECTION_KERNEL,
            stride,
            padding=PROJECTION_KERNEL // 2,
            groups=width,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """A token map (B, C, H, W) to tokens (B, T', C); T' is a quarter of T at stride 2."""
        return self.bn(self.conv(x)).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head attention over convolutionally projected tokens (paper, section 3.2)."""

    def __init__(self, stage: StageConfig) -> None:
        super().__init__()
        width = stage.width
        self.heads = stage.heads
        # The whole width, not the head width: the official code scales so, and so were its
        # checkpoints trained.
        self.scale = width**-0.5
        self.conv_proj_q = ConvProjection(width, stride=1)
        self.conv_proj_k = ConvProjection(width, stride=KEY_VALUE_STRIDE)
        self.conv_proj_v = ConvProjection(width, stride=KEY_VALUE_STRIDE)
        self.proj_q = nn.Linear(width, width)
        self.proj_k = nn.Linear(width, width)
        self.proj_v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Tokens (B, N, C), with or without a class token in front, to tokens of that shape."""
        batch, tokens, channels = x.shape
        patches = x[:, tokens - height * width :]  # (B, T, C)
        class_token = x[:, : tokens - height * width]  # (B, 1 or 0, C): skips the convolutions
        token_map = patches.transpose(1, 2).reshape(batch, channels, height, width)
        q = self.conv_proj_q(token_map)  # (B, T, C)
        token_map, full_precision = _float32_on_cpu(token_map)
        with full_precision:
            k = self.conv_proj_k(token_map)  # (B, K, C)
            v = self.conv_proj_v(token_map)
        if class_token.shape[1]:
            q, k, v = (torch.cat((class_token.to(t.dtype), t), dim=1) for t in (q, k, v))
        q = self._split_heads(self.proj_q(q))  # (B, h, N, d)
        k = self._split_heads(self.proj_k(k))  # (B, h, K, d)
        v = self._split_heads(self.proj_v(v))
        x = attention(q, k, v, self.scale)  # (B, h, N, d)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, channels))  # (B, N, C)

    def _split_heads(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        return x.view(batch, tokens, self.heads, channels // self.heads).transpose(1, 2)


class Mlp(nn.Module):
    """Two linear layers around QuickGELU ``x * sigmoid(1.702 x)``, or around exact GELU."""

    def __init__(self, stage: StageConfig, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(stage.width, stage.hidden_width)
        self.fc2 = nn.Linear(stage.hidden_width, stage.width)
        self.quick = activation == "quick_gelu"

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        if not self.quick:
            return self.fc2(F.gelu(self.fc1(x)))
        # QuickGELU(x) = SiLU(s x) / s with s = 1.702: scaling the weights, which are few, in place
        # of the activations, which are many, saves two passes over memory.
        scale = QUICK_GELU_SCALE
        x = F.silu(F.linear(x, self.fc1.weight * scale, self.fc1.bias * scale))
        return F.linear(x, self.fc2.weight * (1 / scale), self.fc2.bias)


class Block(nn.Module):
    """Attention and MLP, each a pre-norm residual branch with stochastic depth."""

    def __init__(self, stage: StageConfig, drop_path_rate: float, activation: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(stage.width, eps=1e-5)
        self.attn = Attention(stage)
        self.norm2 = nn.LayerNorm(stage.width, eps=1e-5)
        self.mlp = Mlp(stage, activation)
        self.drop_path_rate = drop_path_rate

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        x = x + self._drop(self.attn(self.norm1(x), height, width))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, branch: Tensor) -> Tensor:
        return drop_path(branch, self.drop_path_rate, self.training)


class Stage(nn.Module):
    """A token embedding and its blocks; the last stage also carries the class token."""

    def __init__(
        self, in_channels: int, stage: StageConfig, activation: str, with_class_token: bool
    ) -> None:
        super().__init__()
        self.patch_embed = ConvEmbed(in_channels, stage)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, stage.width)) if with_class_token else None
        self.blocks = nn.ModuleList(
            Block(stage, rate, activation) for rate in stage.drop_path_rates
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """A map (B, C_in, H_in, W_in) to a map (B, C, H, W) and, if any, class tokens (B, C)."""
        x = self.patch_embed(x)  # (B, H, W, C)
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height * width, channels)  # (B, T, C)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(batch, -1, -1).to(x.dtype), x), dim=1)  # (B, N, C)
        for block in self.blocks:
            x = block(x, height, width)
        class_token = None
        if self.cls_token is not None:
            class_token, x = x[:, 0], x[:, 1:]
        return x.transpose(1, 2).reshape(batch, channels, height, width), class_token


class CvT(nn.Module):
    """The whole classifier: images (B, 3, H, W), normalised, to logits (B, num_classes).

    Any H and W from 32 up work, also unequal ones, since CvT has no position embedding.
    """

    def __init__(self, config: CvTConfig) -> None:
        super().__init__()
        self.config = config
        in_channels = 3
        for index, stage in enumerate(config.stages):
            # stage0, stage1, … rather than a ModuleList: the official names
            last = index == len(config.stages) - 1
            self.add_module(f"stage{index}", Stage(in_channels, stage, config.activation, last))
            in_channels = stage.width
        self.norm = nn.LayerNorm(in_channels, eps=1e-5)
        self.head = nn.Linear(in_channels, config.num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the normalised class token (B, C) that the head reads."""
        for index in range(len(self.config.stages)):
            x, class_token = self.get_submodule(f"stage{index}")(x)
        return self.norm(class_token)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, num_classes)."""
        return self.head(self.forward_features(x))


def init_weights(model: nn.Module) -> None:
    """Draw fresh weights as the official code does ("trunc_norm", cls_cvt.py).

    Linear layers and the class token: normal, truncated, standard deviation 0.02; biases 0;
    norms 1 and 0; convolutions as PyTorch initialises them.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Stage) and module.cls_token is not None:
            nn.init.trunc_normal_(module.cls_token, std=0.02)
