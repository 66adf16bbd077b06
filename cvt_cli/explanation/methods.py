"""The methods by name, and the maps that they give of one picture."""

import importlib.util
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

Name = Literal[
    "hirescam",
    "layercam",
    "relevance",
    "attention",
    "gradcam",
    "integrated-gradients",
    "occlusion",
]


@dataclass(frozen=True)
class Method:
    """What a method is, beside how it is computed."""

    about: str
    signed: bool = False  # values below 0 speak against the class
    by_class: bool = True  # the map depends on the class
    by_stage: bool = False  # it is taken at a stage that can be chosen
    captum: bool = False


METHODS: dict[Name, Method] = {
    "hirescam": Method("gradients times the features of a stage", signed=True, by_stage=True),
    "layercam": Method("positive gradients times the features of a stage", by_stage=True),
    "relevance": Method("gradients times attention, through the last stage"),
    "attention": Method("attention, rolled out over the last stage", by_class=False),
    "gradcam": Method(
        "mean gradients times the features of a stage", signed=True, by_stage=True, captum=True
    ),
    "integrated-gradients": Method(
        "gradients by the pixel, summed from grey to the image", signed=True, captum=True
    ),
    "occlusion": Method("what the answer loses where a window is grey", signed=True, captum=True),
}

DEFAULT: Name = "hirescam"
"""The truest of those that take one pass and need nothing else (docs/commands/explain.md)."""

STAGE = 1
"""Counted from 0; the one whose maps were the truest. A network with fewer has its last."""

_STEPS = 32
"""Of integrated gradients; from 32 on the maps change little."""

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
    """Raises UsageError for a method that is not installed, or a stage that there is not."""
    for name in methods:
        if name not in METHODS:  # from Python
            accepted = ", ".join(f"`{one}`" for one in METHODS)
            raise UsageError(f"there is no method `{name}`; accepted are {accepted}")
        if METHODS[name].captum and importlib.util.find_spec("captum") is None:
            raise UsageError(
                f"method `{name}` needs captum, which is not installed",
                hint="pip install '.[explain]'",
            )
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
            "gradcam": self._gradcam,
            "integrated-gradients": self._integrated_gradients,
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

    def _gradcam(self, target: Target) -> Tensor:
        """(Selvaraju et al. 2017), without its ReLU."""
        from captum.attr import LayerGradCam

        with torch.enable_grad():
            # captum watches a module's output, through which gradients must go already.
            picture = self._picture.clone().requires_grad_()
            method = LayerGradCam(self._logit(target), self._network.taps[self._stage])
            return method.attribute(picture)[0, 0]

    def _integrated_gradients(self, target: Target) -> Tensor:
        """(Sundararajan et al. 2017), from the mean colour."""
        from captum.attr import IntegratedGradients

        with torch.enable_grad():
            method = IntegratedGradients(self._logit(target))
            return method.attribute(self._picture, n_steps=_STEPS, internal_batch_size=_TOGETHER)[
                0
            ].sum(0)

    def _occlusion(self, target: Target) -> Tensor:
        """(Zeiler and Fergus 2014), with the mean colour; overlapping windows are averaged."""
        from captum.attr import Occlusion

        window = [max(1, side // _WINDOWS) for side in self._picture.shape[2:]]
        stride = [max(1, side // 2) for side in window]
        with torch.no_grad():
            found = Occlusion(self._logit(target)).attribute(
                self._picture,
                sliding_window_shapes=(3, *window),
                strides=(3, *stride),
                perturbations_per_eval=_TOGETHER,
            )
        return found[0].mean(0)

    def _logit(self, target: Target):  # type: ignore[no-untyped-def]
        return lambda pictures: target.logit(self._network(pictures))


def _blocks(trace: Trace) -> list[Tensor]:
    return [trace.attention[place] for place in sorted(trace.attention)]


def _array(values: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(values.float().cpu().numpy())
