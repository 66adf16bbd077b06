"""The network rewritten for inference by exact algebra: the same logits from less work.

What differs from the training form (`model`):

- BatchNorm is folded into the depthwise convolution before it (both are affine, and the padding's
  zeros enter before either).
- A token map stays (B, H, W, C) throughout, which a convolution sees as channels-last: nothing is
  permuted in memory.
- QuickGELU(x) = SiLU(1.702 x) / 1.702, and both constants go into the linear layers around it.
- The last block computes the class token's query, projection and MLP alone, since the head reads
  nothing else; keys and values still come from every token.
- On a CPU a linear layer, and the SiLU or the sum behind it, is one operation of oneDNN on weights
  that are in its own order beforehand (`InferenceCvT.pack`): PyTorch's own linear layers go to MKL
  in float32, which is slower on most processors, and weights are brought into that order in every
  call.

Notation as in `model`; N is T, plus 1 in the last stage, where the class token comes first.
"""

import copy
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvt_cli.model.network import (
    QUICK_GELU_SCALE,
    Attention,
    Block,
    ConvProjection,
    CvT,
    Mlp,
    Stage,
)

_PACKED = frozenset({torch.float32, torch.bfloat16})
"""What oneDNN computes linear layers in, on every processor."""


class Pointwise(nn.Module):
    """A linear layer over the last axis, and the activation or the sum behind it."""

    def __init__(self, linear: nn.Linear, activation: Literal["none", "swish"] = "none") -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        self.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        self.activation = activation  # by oneDNN's names
        self.packed: Tensor | None = None

    def pack(self) -> None:
        """Bring the weights into oneDNN's order; they are of a precision that it has."""
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), None)
        del self.weight

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(…, C_in) to (…, C_out), plus the residual of that shape; an activation has none."""
        if self.packed is None:
            x = F.linear(x, self.weight, self.bias)
            if self.activation != "none":
                x = F.silu(x, inplace=True)
            return x if residual is None else x.add_(residual)
        shape, rows = x.shape[:-1], x.reshape(-1, x.shape[-1])
        fused = torch.ops.mkldnn._linear_pointwise
        if residual is None:
            y = fused(rows, self.packed, self.bias, self.activation, [], "")
        else:
            added = residual.reshape(-1, residual.shape[-1])
            y = fused.binary(rows, added, self.packed, self.bias, "add")
        return y.view(*shape, -1)


class Depthwise(nn.Module):
    """A `ConvProjection` with its BatchNorm folded into the convolution."""

    def __init__(self, projection: ConvProjection) -> None:
        super().__init__()
        conv = projection.conv
        # In float64, which an Apple GPU has not.
        bn = copy.deepcopy(projection.bn).cpu().double()
        assert bn.running_mean is not None and bn.running_var is not None  # it counts statistics
        scale = bn.weight / (bn.running_var + bn.eps).sqrt()
        bias = (bn.bias - bn.running_mean * scale).detach().to(conv.weight)
        weight = (conv.weight.cpu().double() * scale[:, None, None, None]).detach().to(conv.weight)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.stride, self.padding = conv.stride, conv.padding

    def forward(self, x: Tensor) -> Tensor:
        """A map (B, H, W, C) to (B, H, W, C), or to half the height and width at stride 2."""
        if x.is_cuda and torch.compiler.is_compiling():
            return self._by_products(x)
        channels = self.weight.shape[0]
        x = x.permute(0, 3, 1, 2)
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=channels)
        return x.permute(0, 2, 3, 1)

    def _by_products(self, x: Tensor) -> Tensor:
        """Likewise, as a sum that a compiler makes one kernel of: cuDNN's takes twice as long."""
        stride, edge = self.stride[0], self.weight.shape[2] // 2
        height, width = (x.shape[1] - 1) // stride + 1, (x.shape[2] - 1) // stride + 1
        x = F.pad(x, (0, 0, edge, edge, edge, edge))
        weight, result = self.weight.float(), self.bias.float()
        for i in range(weight.shape[2]):
            for j in range(weight.shape[3]):
                rows = slice(i, i + stride * (height - 1) + 1, stride)
                columns = slice(j, j + stride * (width - 1) + 1, stride)
                result = result + x[:, rows, columns].float() * weight[:, 0, i, j]
        return result.to(x.dtype)


class InferenceAttention(nn.Module):
    """`Attention` over a normalised map and, in the last stage, a class token."""

    def __init__(self, attention: Attention, class_token_alone: bool) -> None:
        super().__init__()
        self.heads, self.scale = attention.heads, attention.scale
        self.class_token_alone = class_token_alone
        if not class_token_alone:
            self.conv_q = Depthwise(attention.conv_proj_q)
        self.conv_k = Depthwise(attention.conv_proj_k)
        self.conv_v = Depthwise(attention.conv_proj_v)
        self.q, self.k, self.v, self.out = (
            Pointwise(linear)
            for linear in (attention.proj_q, attention.proj_k, attention.proj_v, attention.proj)
        )

    def forward(self, token_map: Tensor, class_token: Tensor | None, residual: Tensor) -> Tensor:
        """(B, H, W, C) and (B, 1, C) or None, plus the residual: (B, H, W, C), (B, N, C), or
        (B, 1, C)."""
        k = self._tokens(self.conv_k(token_map), class_token, self.k)  # (B, h, K, d)
        v = self._tokens(self.conv_v(token_map), class_token, self.v)
        if class_token is not None and self.class_token_alone:
            q = self._heads(self.q(class_token))  # (B, h, 1, d)
        else:
            q = self._tokens(self.conv_q(token_map), class_token, self.q)  # (B, h, N, d)
        x = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        x = x.transpose(1, 2).flatten(2)  # (B, N, C)
        return self.out(x.view(residual.shape), residual)

    def _tokens(self, token_map: Tensor, class_token: Tensor | None, linear: Pointwise) -> Tensor:
        if class_token is None:
            return self._heads(linear(token_map).flatten(1, 2))
        return self._heads(linear(torch.cat((class_token, token_map.flatten(1, 2)), dim=1)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class InferenceMlp(nn.Module):
    """`Mlp` with QuickGELU's constant folded into both layers."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.quick = mlp.quick
        first, second = copy.deepcopy(mlp.fc1), copy.deepcopy(mlp.fc2)
        if mlp.quick:
            with torch.no_grad():
                first.weight.mul_(QUICK_GELU_SCALE)
                first.bias.mul_(QUICK_GELU_SCALE)
                second.weight.div_(QUICK_GELU_SCALE)
        self.first = Pointwise(first, "swish" if mlp.quick else "none")
        self.second = Pointwise(second)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """(…, C) to (…, C), plus the residual."""
        x = self.first(x)
        return self.second(x if self.quick else F.gelu(x), residual)


class InferenceBlock(nn.Module):
    """`Block` on a map (B, H, W, C), or on tokens (B, N, C) with the class token first."""

    def __init__(self, block: Block, class_token_alone: bool) -> None:
        super().__init__()
        self.class_token_alone = class_token_alone
        self.norm1, self.norm2 = copy.deepcopy(block.norm1), copy.deepcopy(block.norm2)
        self.attention = InferenceAttention(block.attn, class_token_alone)
        self.mlp = InferenceMlp(block.mlp)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """To the same shape, or to the class token (B, 1, C) alone."""
        normed = self.norm1(x)
        if x.ndim == 4:
            x = self.attention(normed, None, x)
        else:
            # Each of the convolutions would make a copy of its own.
            token_map = normed[:, 1:].unflatten(1, (height, width)).contiguous()
            residual = x[:, :1] if self.class_token_alone else x
            x = self.attention(token_map, normed[:, :1], residual)
        return self.mlp(self.norm2(x), x)


class InferenceStage(nn.Module):
    """`Stage`, from a map to a map; the last one to the class token."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        embed = stage.patch_embed.proj
        self.weight = nn.Parameter(
            embed.weight.detach().contiguous(memory_format=torch.channels_last), requires_grad=False
        )
        assert embed.bias is not None
        self.bias = nn.Parameter(embed.bias.detach(), requires_grad=False)
        self.stride, self.padding = embed.stride, embed.padding
        self.norm = copy.deepcopy(stage.patch_embed.norm)
        token = stage.cls_token
        self.class_token = None if token is None else nn.Parameter(token.detach(), False)
        last = len(stage.blocks) - 1
        self.blocks = nn.ModuleList(
            InferenceBlock(cast(Block, block), token is not None and index == last)
            for index, block in enumerate(stage.blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H_in, W_in, C_in) to (B, H, W, C), or to (B, 1, C)."""
        x = F.conv2d(x.permute(0, 3, 1, 2), self.weight, self.bias, self.stride, self.padding)
        x = self.norm(x.permute(0, 2, 3, 1))  # (B, H, W, C)
        height, width = x.shape[1:3]
        if self.class_token is not None:
            token = self.class_token.expand(x.shape[0], -1, -1)
            x = torch.cat((token, x.flatten(1, 2)), dim=1)  # (B, N, C)
        for block in self.blocks:
            x = block(x, height, width)
        return x


class InferenceCvT(nn.Module):
    """The classifier in its inference form: images (B, 3, H, W) to logits (B, num_classes)."""

    def __init__(self, model: CvT) -> None:
        super().__init__()
        self.config = model.config
        stages = [model.get_submodule(f"stage{i}") for i in range(len(model.config.stages))]
        self.stages = nn.ModuleList(InferenceStage(cast(Stage, s)) for s in stages)
        self.norm, self.head = copy.deepcopy(model.norm), copy.deepcopy(model.head)

    def pack(self) -> None:
        """Make linear layers oneDNN's, where this PyTorch has it; to be called on a CPU.

        Weights are then in an order of their own: the form is neither moved nor cast afterwards.
        """
        if torch.backends.mkldnn.is_available() and self.head.weight.dtype in _PACKED:
            for module in self.modules():
                if isinstance(module, Pointwise):
                    module.pack()

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, to logits (B, num_classes)."""
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, to what the head reads (B, C)."""
        x = x.permute(0, 2, 3, 1)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x[:, 0])


def inference_form(model: CvT) -> InferenceCvT:
    """Rewrite a network for inference; its own weights stay as they are.

    Args:
        model: in its training form, on any device.
    """
    return InferenceCvT(model).eval().requires_grad_(False)
