"""The methods by name, and the maps that they give of one picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvt_cli.base.errors import UsageError
from cvt_cli.explanation import attention
from cvt_cli.explanation.geometry import PIXELS, Grid, key_grid, token_grid
from cvt_cli.explanation.target import Target
from cvt_cli.explanation.traced import Trace, TracedCvT

Name = Literal["occlusion", "hirescam", "layercam", "relevance", "attention"]


@dataclass(frozen=True)
class Method:
    """What a method is, beside how it is computed."""

    about: str
    signed: bool = False  # values below 0 speak against the class
    by_class: bool = True  # the map depends on the class
    by_stage: bool = False  # it is taken at a stage that can be chosen


METHODS: dict[Name, Method] = {
    "occlusion": Method("what the answer loses where a window is covered", signed=True),
    "hirescam": Method("gradients times the features of a stage", signed=True, by_stage=True),
    "layercam": Method("positive gradients times the features of a stage", by_stage=True),
    "relevance": Method("gradients times attention, through the last stage"),
    "attention": Method("attention, rolled out over the last stage", by_class=False),
}
"""Those that are truer than a random map on every set of images that they were measured on."""

DEFAULT: Name = "occlusion"
"""The truest of them (docs/commands/explain.md has the figures)."""

STAGE = 1
"""Counted from 0; the one whose maps were the truest. A network with fewer has its last."""

_WINDOWS = 4
"""Windows of occlusion side by side; they overlap by half."""

_TOGETHER = 8
"""Pictures in one call where a method needs many."""


@dataclass(frozen=True)
class Map:
    """What a method gives, at the network's own resolution."""

    method: Name
    values: NDArray[np.float32]  # (rows, columns)
    grid: Grid  # where they lie in the input, along both axes
    stage: int | None = None  # where the method is taken at one
    heads: NDArray[np.float32] | None = None  # attention alone: (blocks, heads, rows, columns)
    heads_grid: Grid | None = None  # where the keys lie that these are given to

    @property
    def signed(self) -> bool:
        """Whether values below 0 speak against the class."""
        return METHODS[self.method].signed


def check(methods: Sequence[Name], stage: int | None, stages: int) -> None:
    """Raises UsageError for a method or a stage that there is not."""
    for name in methods:
        if name not in METHODS:  # from Python
            accepted = ", ".join(f"`{one}`" for one in METHODS)
            raise UsageError(f"there is no method `{name}`; accepted are {accepted}")
    if stage is not None and not 0 <= stage < stages:
        accepted = ", ".join(map(str, range(stages)))
        raise UsageError(f"there is no stage {stage} in this network; accepted are {accepted}")


class Maps:
    """The maps of one picture, which share what they can.

    Args:
        network: which is explained.
        picture: (1, 3, H, W), normalised, on the network's device.
        stage: of the methods that are taken at one; by default `STAGE`, or the last there is.
    """

    def __init__(self, network: TracedCvT, picture: Tensor, stage: int | None = None) -> None:
        self._network, self._picture = network, picture
        self._last = len(network.config.stages) - 1
        self._stage = min(STAGE, self._last) if stage is None else stage

    def of(self, method: Name, target: Target) -> Map:
        """The map of a method for a target."""
        compute = {
            "hirescam": self._hirescam,
            "layercam": self._layercam,
            "relevance": self._relevance,
            "attention": self._attention,
            "occlusion": self._occlusion,
        }[method]
        values = compute(target).detach()
        grid = (
            self._grid if METHODS[method].by_stage else token_grid(self._network.config, self._last)
        )
        if values.shape == self._picture.shape[2:]:
            grid = PIXELS
        return Map(
            method,
            _array(values),
            grid,
            self._stage if METHODS[method].by_stage else None,
            *((self._heads, key_grid(grid)) if method == "attention" else ()),
        )

    @property
    def _grid(self) -> Grid:
        return token_grid(self._network.config, self._stage)

    @cached_property
    def _attended(self) -> Trace:
        with torch.no_grad():
            return self._network.trace(self._picture, keep=self._last)

    @cached_property
    def _with_gradients(self) -> Trace:
        """Of the last stage alone, which is all that has a class token."""
        with torch.enable_grad():
            return self._network.trace(self._picture, keep=self._last, gradients_from=self._last)

    @property
    def _heads(self) -> NDArray[np.float32]:
        trace = self._attended
        return _array(attention.of_heads(_blocks(trace), self._shape(trace)))

    def _shape(self, trace: Trace) -> tuple[int, int]:
        height, width = trace.maps[self._last].shape[2:]
        return height, width

    def _attention(self, target: Target) -> Tensor:
        trace = self._attended
        return attention.rollout(_blocks(trace), self._shape(trace))

    def _relevance(self, target: Target) -> Tensor:
        trace = self._with_gradients
        blocks = _blocks(trace)
        gradients = torch.autograd.grad(target.logit(trace.logits)[0], blocks, retain_graph=True)
        return attention.relevance(blocks, list(gradients), self._shape(trace))

    def _hirescam(self, target: Target) -> Tensor:
        """(Draelos and Carin 2020), which captum lacks."""
        features, gradient = self._features(target)
        return (gradient * features)[0].sum(0)

    def _layercam(self, target: Target) -> Tensor:
        """(Jiang et al. 2021), which captum lacks."""
        features, gradient = self._features(target)
        return (gradient.clamp(min=0) * features)[0].sum(0).clamp(min=0)

    def _features(self, target: Target) -> tuple[Tensor, Tensor]:
        """A stage's map (1, C, H, W), and the gradient of what is explained by it."""
        with torch.enable_grad():
            trace = self._network.trace(
                self._picture, gradients_from=min(self._stage + 1, self._last)
            )
            features = trace.maps[self._stage]
            (gradient,) = torch.autograd.grad(target.logit(trace.logits)[0], features)
        return features.detach(), gradient

    def _occlusion(self, target: Target) -> Tensor:
        """(Zeiler and Fergus 2014), with the mean colour; where windows overlap, their mean."""
        height, width = self._picture.shape[2:]
        places = [(rows, columns) for rows in _windows(height) for columns in _windows(width)]
        covered = self._picture.new_zeros(len(places), 1, height, width)
        for number, (rows, columns) in enumerate(places):
            covered[number, 0, rows, columns] = 1
        with torch.no_grad():
            pictures = (self._picture * (1 - some) for some in covered.split(_TOGETHER))
            told = torch.cat([target.logit(self._network(some)) for some in pictures])
            lost = target.logit(self._network(self._picture)) - told  # (windows,)
        times = covered.sum((0, 1))
        return torch.einsum("n,nyx->yx", lost, covered[:, 0]) / times


def _windows(length: int) -> list[slice]:
    """Windows along an axis, which overlap by half."""
    window = max(1, length // _WINDOWS)
    stride = max(1, window // 2)
    return [slice(at, at + window) for at in range(0, length - window + stride, stride)]


def _blocks(trace: Trace) -> list[Tensor]:
    return [trace.attention[place] for place in sorted(trace.attention)]


def _array(values: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(values.float().cpu().numpy())
