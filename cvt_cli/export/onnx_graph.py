"""The network as ONNX operators, one for one with its inference form (`model/inference.py`).

Written directly: torch's exporter traces for half a minute what is said here in a fraction of a
second, and fills the graph with the arithmetic of shapes. A LayerNorm is one operator, the factor
of the attention scores is part of the queries' weights, and keys are turned once into the form that
the product reads. Tokens have three axes wherever nothing convolves: of LayerNorms over four,
OpenVINO makes several operations, and it moves sums of such maps in memory.

Whoever changes what is written counts `prepared_graphs.WRITER` up: graphs are kept.
"""

from collections.abc import Sequence
from typing import Any, cast

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from cvt_cli.model.inference import (
    Depthwise,
    InferenceAttention,
    InferenceBlock,
    InferenceCvT,
    InferenceMlp,
    InferenceStage,
    Pointwise,
)

OPSET = 18
"""The version of ONNX's operators."""

IR_VERSION = 10
"""The version of the file's format that goes with it, and that every supported runtime reads."""

_ELEMENTS = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int64: TensorProto.INT64,
}


def network_graph(
    form: InferenceCvT,
    size: tuple[int, int] | None,
    dtype: torch.dtype,
    convolutions: bool = False,
) -> onnx.ModelProto:
    """The graph from `images`, float32 (B, 3, H, W), to `logits` and `features`, float32.

    Args:
        form: whose linear layers are not written as convolutions, on the CPU.
        size: height and width of the images in pixels; None for any.
        dtype: of weights and of what is computed.
        convolutions: write linear layers but the head as 1 x 1 convolutions.
    """
    model = helper.make_model(
        onnx.GraphProto(name="cvt"),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="cvt-cli",
    )
    graph = _Graph(model.graph, dtype, convolutions)
    x = "images" if dtype == torch.float32 else graph.cast("images", dtype)
    features = graph.features(form, x, size)
    logits = graph.linear(features, form.head.weight, form.head.bias)
    shape = ["batch", 3, *(size or ("height", "width"))]
    model.graph.input.append(helper.make_tensor_value_info("images", TensorProto.FLOAT, shape))
    for value, name, channels in (
        (logits, "logits", form.head.out_features),
        (features, "features", form.head.in_features),
    ):
        graph.rename(value, name, dtype)
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels])
        model.graph.output.append(info)
    return model


class _Graph:
    """Nodes in the order in which they compute; methods add some and give the name of a value."""

    def __init__(self, graph: onnx.GraphProto, dtype: torch.dtype, convolutions: bool) -> None:
        self.graph, self.dtype, self.convolutions = graph, dtype, convolutions
        self._integers: dict[tuple[int, ...], str] = {}

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator.lower()}_{len(self.graph.node)}"
        self.graph.node.append(helper.make_node(operator, list(inputs), [name], name, **attributes))
        return name

    def constant(self, values: Tensor) -> str:
        """Integers, or a weight in the precision of the network."""
        if values.is_floating_point():
            values = values.detach().to(self.dtype)
        name = f"constant_{len(self.graph.initializer)}"
        raw = values.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        # In its place at once: what is made beside and appended is there twice, gigabytes of W24.
        self.graph.initializer.add(
            name=name, data_type=_ELEMENTS[values.dtype], dims=values.shape, raw_data=raw
        )
        return name

    def integers(self, *values: int) -> str:
        """A shape or positions."""
        if values not in self._integers:
            self._integers[values] = self.constant(torch.tensor(values, dtype=torch.int64))
        return self._integers[values]

    def rename(self, value: str, name: str, dtype: torch.dtype) -> None:
        """Give an output its name, in float32."""
        if dtype == torch.float32:
            node = helper.make_node("Identity", [value], [name], name)
        else:
            node = helper.make_node("Cast", [value], [name], name, to=TensorProto.FLOAT)
        self.graph.node.append(node)

    def cast(self, value: str, dtype: torch.dtype) -> str:
        return self.add("Cast", value, to=_ELEMENTS[dtype])

    # --- what the network is made of

    def reshape(self, x: str, *shape: int) -> str:
        """0 keeps an axis, -1 is what is left."""
        return self.add("Reshape", x, self.integers(*shape))

    def between(self, x: str, start: int, end: int) -> str:
        """A part along the axis of tokens."""
        return self.add("Slice", x, self.integers(start), self.integers(end), self.integers(1))

    def linear(self, x: str, weight: Tensor, bias: Tensor) -> str:
        return self.add("Add", self.add("MatMul", x, self.constant(weight.T)), self.constant(bias))

    def pointwise(self, x: str, layer: Pointwise, factor: float = 1.0) -> str:
        """A linear layer over tokens (B, N, C)."""
        if self.convolutions:
            return self.as_tokens(self.pointwise_map(self.as_map(x), layer, factor))
        return self.linear(x, layer.weight * factor, layer.bias * factor)

    def pointwise_map(self, x: str, layer: Pointwise, factor: float = 1.0) -> str:
        """The same over a map (B, C, 1, N)."""
        weight = (layer.weight * factor)[:, :, None, None]
        bias = self.constant(layer.bias * factor)
        return self.add("Conv", x, self.constant(weight), bias, kernel_shape=[1, 1])

    def as_map(self, x: str) -> str:
        """Tokens (B, N, C) to (B, C, 1, N)."""
        x = self.add("Unsqueeze", x, self.integers(1))
        return self.add("Transpose", x, perm=[0, 3, 1, 2])

    def as_tokens(self, x: str) -> str:
        """(B, C, 1, N) to tokens (B, N, C)."""
        x = self.add("Transpose", x, perm=[0, 2, 3, 1])
        return self.add("Squeeze", x, self.integers(1))

    def norm(self, x: str, norm: nn.LayerNorm) -> str:
        weights = self.constant(norm.weight), self.constant(norm.bias)
        return self.add("LayerNormalization", x, *weights, axis=-1, epsilon=norm.eps)

    def convolution(self, x: str, layer: Depthwise | InferenceStage, groups: int) -> str:
        """A map (B, C, H, W) to tokens (B, N, C), or to a map."""
        top, left = cast(tuple[int, int], layer.padding)
        down, right = cast(tuple[int, int], layer.stride)
        x = self.add(
            "Conv", x, self.constant(layer.weight), self.constant(layer.bias), group=groups,
            kernel_shape=list(layer.weight.shape[2:]), pads=[top, left, top, left],
            strides=[down, right],
        )  # fmt: skip
        return self.add("Transpose", x, perm=[0, 2, 3, 1])

    def features(self, form: InferenceCvT, x: str, size: tuple[int, int] | None) -> str:
        """Images (B, 3, H, W) to what the head reads (B, C)."""
        shape = ""
        for index, (stage, spec) in enumerate(zip(form.stages, form.config.stages, strict=True)):
            if index:
                x = self.add("Transpose", self.add("Reshape", x, shape), perm=[0, 3, 1, 2])
            size = size and (spec.embedded(size[0]), spec.embedded(size[1]))
            x, shape = self.stage(x, cast(InferenceStage, stage), size)
        return self.norm(self.reshape(x, 0, form.head.in_features), form.norm)

    def stage(self, x: str, stage: InferenceStage, size: tuple[int, int] | None) -> tuple[str, str]:
        """(B, C_in, H_in, W_in) to tokens (B, N, C), or the class token (B, 1, C); and the shape
        (B, H, W, C) of their map."""
        x = self.convolution(x, stage, groups=1)
        channels = stage.weight.shape[0]
        shape = self.integers(0, *size, channels) if size else self.add("Shape", x)
        x = self.norm(self.reshape(x, 0, -1, channels), stage.norm)
        if stage.class_token is not None:
            batch = self.add("Shape", x, start=0, end=1)
            one_each = self.add("Concat", batch, self.integers(1), self.integers(1), axis=0)
            token = self.add("Expand", self.constant(stage.class_token), one_each)
            x = self.add("Concat", token, x, axis=1)
        for block in stage.blocks:
            x = self.block(x, cast(InferenceBlock, block), shape, stage.class_token is not None)
        return x, shape

    def block(self, x: str, block: InferenceBlock, shape: str, tokens: bool) -> str:
        normed = self.norm(x, block.norm1)
        token_map, class_token = normed, None
        if tokens:
            class_token = self.between(normed, 0, 1)
            token_map = self.between(normed, 1, 2**31)
            if block.class_token_alone:
                x = self.between(x, 0, 1)
        token_map = self.add("Reshape", token_map, shape)
        x = self.add("Add", self.attention(token_map, class_token, block.attention), x)
        return self.add("Add", self.mlp(self.norm(x, block.norm2), block.mlp), x)

    def attention(self, token_map: str, class_token: str | None, layer: InferenceAttention) -> str:
        """(B, H, W, C) and (B, 1, C) or None, to (B, N, C), or (B, 1, C)."""
        convolved = self.add("Transpose", token_map, perm=[0, 3, 1, 2])
        channels = layer.k.weight.shape[1]

        def tokens(conv: Depthwise) -> str:
            x = self.reshape(self.convolution(convolved, conv, groups=channels), 0, -1, channels)
            return x if class_token is None else self.add("Concat", class_token, x, axis=1)

        def heads(x: str, axes: Sequence[int]) -> str:
            split = self.reshape(x, 0, -1, layer.heads, channels // layer.heads)
            return self.add("Transpose", split, perm=axes)

        k = heads(self.pointwise(tokens(layer.conv_k), layer.k), (0, 2, 3, 1))  # (B, h, d, K)
        v = heads(self.pointwise(tokens(layer.conv_v), layer.v), (0, 2, 1, 3))  # (B, h, K, d)
        alone = class_token if layer.class_token_alone else None
        asking = alone or tokens(layer.conv_q)
        q = heads(self.pointwise(asking, layer.q, layer.scale), (0, 2, 1, 3))  # (B, h, N, d)
        scores = self.add("Softmax", self.add("MatMul", q, k), axis=-1)
        x = self.add("Transpose", self.add("MatMul", scores, v), perm=[0, 2, 1, 3])
        return self.pointwise(self.reshape(x, 0, -1, channels), layer.out)

    def mlp(self, x: str, layer: InferenceMlp) -> str:
        inside = self.pointwise_map if self.convolutions else self.pointwise
        if self.convolutions:
            x = self.as_map(x)
        x = inside(x, layer.first)
        x = self.add("Mul", x, self.add("Sigmoid", x)) if layer.quick else self.gelu(x)
        x = inside(x, layer.second)
        return self.as_tokens(x) if self.convolutions else x

    def gelu(self, x: str) -> str:
        """By the error function, in the form that runtimes fuse; `Gelu` is of a later opset."""
        root, one, half = (self.constant(torch.tensor(value)) for value in (2**0.5, 1.0, 0.5))
        erf = self.add("Erf", self.add("Div", x, root))
        return self.add("Mul", self.add("Mul", x, self.add("Add", erf, one)), half)
