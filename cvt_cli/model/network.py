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
weights, the last block computes the class token alone, which is all that the head reads, and a
batch of one keeps its batch axis. In training a CPU computes nothing of a branch that stochastic
depth drops.
"""

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvt_cli.base import machine
from cvt_cli.spec.config import KEY_VALUE_STRIDE, PROJECTION_KERNEL, CvTConfig, StageConfig

QUICK_GELU_SCALE = 1.702

_SMALLEST_CONVOLUTION = 20480
"""Numbers up to which PyTorch computes a convolution of one image without oneDNN, slowly."""

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


def pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer, (B, N, C_in) to (B, N, C_out), as a 1 x 1 convolution where that is faster.

    On a CPU PyTorch hands convolutions to oneDNN and linear layers to MKL, which is slower in
    float32, forward and backward, but not on processors with AMX; there linear layers are a tenth
    faster in bfloat16 too.
    """
    # oneDNN finds the gradient of weights that narrow faster with the batch as one image's rows.
    batch = len(x) if weight.shape[0] >= weight.shape[1] else 1
    # PyTorch computes these convolutions itself, slowly (ATen's ConvParams::use_mkldnn).
    alone = x.numel() <= _SMALLEST_CONVOLUTION or (batch < 16 and torch.get_num_threads() == 1)
    if x.device.type != "cpu" or x.dtype == torch.float64 or alone or _has_amx():
        return F.linear(x, weight, bias)
    token_map = x.view(batch, -1, x.shape[1], x.shape[2]).permute(0, 3, 1, 2)
    y = F.conv2d(token_map, weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(len(x), x.shape[1], -1)


@functools.cache
def _has_amx() -> bool:
    return machine.has("amx_tile")


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
    return (q @ (k * scale).transpose(-2, -1)).softmax(dim=-1) @ v


def _token_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, T, C) to a map (B, C, H, W).

    A CPU's convolutions and BatchNorm are twice as fast on channels-last, which tokens are as they
    stand; a CUDA device trains a third faster on them in 16 bits. Others get PyTorch's own order.
    """
    token_map = tokens.contiguous().unflatten(1, (height, width)).permute(0, 3, 1, 2)
    as_it_stands = tokens.is_cpu or (tokens.is_cuda and torch.is_autocast_enabled("cuda"))
    return token_map if as_it_stands else token_map.contiguous()


def _channels_last(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


def _samples(x: Tensor, kept: Tensor | None) -> Tensor:
    """Those samples of a batch that are kept; None keeps all."""
    return x if kept is None or len(kept) == len(x) else x.index_select(0, kept)


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
        x = self.bn(self.conv(x))
        if x.requires_grad and x.device.type == "cpu":
            # `cat` gives back parts of a larger tensor, on which BatchNorm is ten times slower.
            x.register_hook(_channels_last)
        return x.permute(0, 2, 3, 1).flatten(1, 2)


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

    def forward(
        self,
        x: Tensor,
        height: int,
        width: int,
        class_token_alone: bool = False,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B, N, C), with or without a class token in front, to tokens of that shape.

        With ``class_token_alone`` its query is the only one, and (B, 1, C) comes back. With
        ``kept`` these samples' tokens come back. The convolutions are of everything all the same,
        for BatchNorm's statistics.
        """
        q, k, v = self.projected(x, height, width, class_token_alone, kept)
        return self.joined(attention(q, k, v, self.scale))

    def projected(
        self,
        x: Tensor,
        height: int,
        width: int,
        class_token_alone: bool = False,
        kept: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, h, N, d), keys and values (B, h, K, d); the arguments of `forward`."""
        class_token = None
        if x.shape[1] > height * width:
            class_token, x = x.split((1, height * width), dim=1)  # it skips the convolutions
        token_map = _token_map(x, height, width)  # (B, C, H, W)
        q = self.conv_proj_q(token_map)  # (B, T, C)
        token_map, full_precision = _float32_on_cpu(token_map)
        with full_precision:
            k = self.conv_proj_k(token_map)  # (B, K, C)
            v = self.conv_proj_v(token_map)
        if class_token is not None:
            q, k, v = (torch.cat((class_token.to(t.dtype), t), dim=1) for t in (q, k, v))
        q, k, v = (_samples(t, kept) for t in (q, k, v))
        if class_token_alone:
            q = q[:, :1]
        return self._heads(q, self.proj_q), self._heads(k, self.proj_k), self._heads(v, self.proj_v)

    def joined(self, x: Tensor) -> Tensor:
        """What the heads found, (B, h, N, d), to tokens (B, N, C)."""
        return pointwise(x.transpose(1, 2).flatten(2), self.proj.weight, self.proj.bias)

    def _heads(self, x: Tensor, projection: nn.Linear) -> Tensor:
        x = pointwise(x, projection.weight, projection.bias)
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


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
            x = F.gelu(pointwise(x, self.fc1.weight, self.fc1.bias))
            return pointwise(x, self.fc2.weight, self.fc2.bias)
        # QuickGELU(x) = SiLU(s x) / s with s = 1.702: scaling the weights, which are few, in place
        # of the activations, which are many, saves two passes over memory.
        scale = QUICK_GELU_SCALE
        x = F.silu(pointwise(x, self.fc1.weight * scale, self.fc1.bias * scale))
        return pointwise(x, self.fc2.weight * (1 / scale), self.fc2.bias)


class Block(nn.Module):
    """Attention and MLP, each a pre-norm residual branch with stochastic depth."""

    def __init__(self, stage: StageConfig, drop_path_rate: float, activation: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(stage.width, eps=1e-5)
        self.attn = Attention(stage)
        self.norm2 = nn.LayerNorm(stage.width, eps=1e-5)
        self.mlp = Mlp(stage, activation)
        self.drop_path_rate = drop_path_rate

    def forward(
        self, x: Tensor, height: int, width: int, class_token_alone: bool = False
    ) -> Tensor:
        """(B, N, C) to (B, N, C), or to the class token (B, 1, C) alone."""
        kept = self._kept(x)
        branch = self.attn(self.norm1(x), height, width, class_token_alone, kept)
        x = self._add(x[:, :1] if class_token_alone else x, branch, kept)
        kept = self._kept(x)
        branch = self.mlp(self.norm2(_samples(x, kept)))
        return self._add(x, branch, kept)

    def _kept(self, x: Tensor) -> Tensor | None:
        """The samples whose next branch is not dropped, so that a CPU computes no other.

        None where all are computed: without stochastic depth, and on an accelerator, which would
        have to wait for the choice.
        """
        if not self.training or self.drop_path_rate == 0.0 or x.device.type != "cpu":
            return None
        return torch.empty(len(x)).bernoulli_(1 - self.drop_path_rate).nonzero()[:, 0]

    def _add(self, x: Tensor, branch: Tensor, kept: Tensor | None) -> Tensor:
        if kept is None:
            return x + drop_path(branch, self.drop_path_rate, self.training)
        scale = 1 / (1 - self.drop_path_rate)
        if len(kept) == len(x):
            return x.add(branch, alpha=scale)
        return x.index_add(0, kept, branch.to(x.dtype), alpha=scale)


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

    def forward(
        self, x: Tensor, class_token_alone: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        """A map (B, C_in, H_in, W_in) to a map (B, C, H, W) and, if any, class tokens (B, C).

        With ``class_token_alone`` the map is None, and the last block does not compute it.
        """
        x = self.patch_embed(x)  # (B, H, W, C)
        height, width = x.shape[1:3]
        x = x.flatten(1, 2)  # (B, T, C)
        if self.cls_token is not None:
            class_token = self.cls_token.expand(len(x), -1, -1).to(x.dtype)
            x = torch.cat((class_token, x), dim=1)  # (B, N, C)
        for index, block in enumerate(self.blocks, start=1):
            x = block(x, height, width, class_token_alone and index == len(self.blocks))
        token = None if self.cls_token is None else x[:, 0]
        if class_token_alone:
            return None, token
        return _token_map(x[:, x.shape[1] - height * width :], height, width), token


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
        *others, last = (self.get_submodule(f"stage{i}") for i in range(len(self.config.stages)))
        for stage in others:
            x, _ = stage(x)
        _, class_token = last(x, class_token_alone=True)
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


def fresh_model(config: CvTConfig, seed: int) -> CvT:
    """A model with freshly drawn weights."""
    torch.manual_seed(seed)
    model = CvT(config)
    init_weights(model)
    return model
