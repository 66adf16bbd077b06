"""How true a map is: what the network says without the pixels that the map calls strong.

    deletion   area under the probability while the strongest pixels go first, to the mean colour
               (Petsiuk et al. 2018); a true map makes it fall early: lower is better
    insertion  likewise while they come first into a blurred picture; higher is better
    ROAD       how much more probable the class stays when the weakest pixels go than when the
               strongest go, these filled in from their neighbours (Rong et al. 2022); higher is
               better
    SaCo       whether stronger tenths of the pixels matter more, weighted by how much stronger the
               map says they are (Wu et al. 2024, arXiv 2404.01415); from -1 to 1, higher is better,
               and 0 is what a random map gets

Pictures are normalised, (3, H, W), where 0 is the mean colour that the model is given.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

STEPS = 20
"""Steps of the curves of deletion and insertion."""

GROUPS = 10
"""Parts of equally many pixels that SaCo compares."""

ROAD_SHARES = (0.2, 0.4, 0.6, 0.8)
"""Shares of the pixels that ROAD takes away."""

_BLUR = 20
"""Standard deviations of insertion's blur in the longer side of a picture."""

_NOISE = 0.01
"""Standard deviation of what ROAD adds to the pixels that it fills in (the authors' value)."""

_TOGETHER = 32
"""Pictures in one call of the network."""

Answer = Callable[[Tensor], Tensor]
"""Pictures (B, 3, H, W) to the probability of what is explained, (B,)."""


@dataclass(frozen=True)
class Scores:
    """Of one map, or means over several."""

    saco: float
    road: float
    insertion: float
    deletion: float


NAMES = ("saco", "road", "insertion", "deletion")
"""The scores, in the order of tables; all but the last are better when higher."""


def scores(answer: Answer, picture: Tensor, values: Tensor, seed: int = 0) -> Scores:
    """All scores of a map (H, W) of one picture (3, H, W)."""
    order = values.flatten().argsort(descending=True, stable=True)
    return Scores(
        saco=saco(answer, picture, values, order),
        road=road(answer, picture, order, seed),
        insertion=insertion(answer, picture, order),
        deletion=deletion(answer, picture, order),
    )


RANDOM, CENTRE = "random", "centre"
"""Maps that know nothing of the network, which others are held against."""


def baselines(shape: tuple[int, int], seed: int) -> dict[str, NDArray[np.float32]]:
    """A random map and one that is strongest in the middle."""
    height, width = shape
    random = np.random.default_rng(seed).random(shape, np.float32)
    down, across = ((np.arange(n) - (n - 1) / 2) / n for n in (height, width))
    centre = np.exp(-8 * (down[:, None] ** 2 + across**2))  # standard deviation: a quarter
    return {RANDOM: random, CENTRE: centre.astype(np.float32)}


@dataclass
class _Sums:
    """Of numbers that are met one by one."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0  # of the distances from the mean

    def add(self, value: float) -> None:
        self.n += 1
        before = value - self.mean
        self.mean += before / self.n
        self.squares += before * (value - self.mean)

    def to_json(self) -> dict[str, Any]:
        """The mean, and its 95 % interval where there are two numbers or more."""
        if self.n < 2:
            return {"mean": self.mean, "interval": None}
        half = 1.96 * math.sqrt(self.squares / (self.n - 1) / self.n)
        return {"mean": self.mean, "interval": [self.mean - half, self.mean + half]}


@dataclass
class Means:
    """Scores over images, by method; memory does not grow with them."""

    sums: dict[str, dict[str, _Sums]] = field(default_factory=dict)

    def add(self, found: Mapping[str, Scores]) -> None:
        """Those of some methods for one map each, the random one among them."""
        for method, one in found.items():
            mine = self.sums.setdefault(method, {n: _Sums() for n in (*NAMES, "above_random")})
            for name in NAMES:
                mine[name].add(getattr(one, name))
            mine["above_random"].add(one.saco - found[RANDOM].saco)

    def to_json(self) -> dict[str, Any]:
        """By method how many maps it gave, the mean of each score, and by how much SaCo is above
        the random map's."""
        ranked = sorted(self.sums, key=lambda method: -self.sums[method]["saco"].mean)
        return {
            "methods": {
                method: {
                    "n": self.sums[method]["saco"].n,
                    **{name: self.sums[method][name].to_json() for name in NAMES},
                    "saco_above_random": None
                    if method == RANDOM
                    else self.sums[method]["above_random"].to_json(),
                }
                for method in ranked
            },
        }


def deletion(answer: Answer, picture: Tensor, order: Tensor) -> float:
    """Area under the probability while pixels go, the first of ``order`` first."""
    gone = _first(order, np.linspace(0, 1, STEPS + 1).tolist(), picture)
    return _area(_answers(answer, picture * ~gone))


def insertion(answer: Answer, picture: Tensor, order: Tensor) -> float:
    """Area under the probability while pixels come into the blurred picture."""
    there = _first(order, np.linspace(0, 1, STEPS + 1).tolist(), picture)
    return _area(_answers(answer, torch.where(there, picture, blurred(picture))))


def saco(answer: Answer, picture: Tensor, values: Tensor, order: Tensor) -> float:
    """The salience-guided faithfulness coefficient; 0 of a map whose parts are all as strong."""
    mean = picture.mean((1, 2), keepdim=True)
    groups = order.tensor_split(GROUPS)
    masks = torch.zeros(GROUPS, values.numel(), dtype=torch.bool, device=picture.device)
    for number, group in enumerate(groups):
        masks[number, group] = True
    without = torch.where(masks.view(GROUPS, 1, *values.shape), mean, picture)
    told = _answers(answer, torch.cat((picture[None], without)))
    drops = told[0] - told[1:]
    flat = values.flatten().double()
    if flat.min() == flat.max():  # of which a group with a pixel more than another would seem so
        return 0.0
    strengths = torch.stack([flat[group].sum() for group in groups]).cpu()
    first, second = torch.triu_indices(GROUPS, GROUPS, 1)
    weights = strengths[first] - strengths[second]  # none below 0: the groups are in order
    agree = drops[first] >= drops[second]
    total = float(weights.sum())
    return float((weights * torch.where(agree, 1.0, -1.0)).sum()) / total if total > 0 else 0.0


def road(answer: Answer, picture: Tensor, order: Tensor, seed: int = 0) -> float:
    """Mean probability without the weakest pixels less that without the strongest."""
    masks = torch.cat([_first(o, ROAD_SHARES, picture) for o in (order, order.flip(0))])
    told = _answers(answer, filled_in(picture, masks, seed))
    without_strongest, without_weakest = told.split(len(ROAD_SHARES))
    return float((without_weakest - without_strongest).mean())


def filled_in(picture: Tensor, masks: Tensor, seed: int = 0) -> Tensor:
    """A picture whose pixels under each mask (B, 1, H, W) are filled in, with a little noise.

    Each is the weighted mean of its eight neighbours, those that share an edge counting twice: a
    linear system in what is missing, solved by conjugate gradients.
    """
    side, corner = 1 / 6, 1 / 12
    kernel = picture.new_tensor([[corner, side, corner], [side, 0, side], [corner, side, corner]])
    missing = masks.to(picture.dtype)

    def neighbours(x: Tensor) -> Tensor:
        flat = F.conv2d(x.flatten(0, 1)[:, None], kernel[None, None], padding=1)
        return flat.view(x.shape)

    near = neighbours(torch.ones_like(picture)[None, :1])  # less than 1 at the border
    known = picture * (1 - missing)
    wanted = neighbours(known) * missing
    x = (known.sum((2, 3)) / (1 - missing).sum((2, 3)).clamp(min=1))[..., None, None] * missing

    def apply(x: Tensor) -> Tensor:
        return (near * x - neighbours(x)) * missing

    left = wanted - apply(x)
    step, size = left, left.square().sum((1, 2, 3), keepdim=True)
    enough = 1e-6 * wanted.square().sum((1, 2, 3), keepdim=True)
    for _ in range(4 * max(picture.shape)):
        if bool((size <= enough).all()):
            break
        turned = apply(step)
        length = size / (step * turned).sum((1, 2, 3), keepdim=True).clamp(min=1e-30)
        x, left = x + length * step, left - length * turned
        before, size = size, left.square().sum((1, 2, 3), keepdim=True)
        step = left + size / before.clamp(min=1e-30) * step
    generator = torch.Generator().manual_seed(seed)
    noise = _NOISE * torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x)
    return known + (x + noise) * missing


def blurred(picture: Tensor) -> Tensor:
    """A picture (3, H, W) without what its classes are told by."""
    sigma = max(picture.shape[1:]) / _BLUR
    radius = max(1, round(2 * sigma))
    places = torch.arange(-radius, radius + 1, dtype=picture.dtype, device=picture.device)
    line = torch.exp(-(places**2) / (2 * sigma**2))
    line = line / line.sum()
    x = F.pad(picture[None], (radius,) * 4, mode="replicate").transpose(0, 1)
    x = F.conv2d(x, line[None, None, :, None])
    return F.conv2d(x, line[None, None, None, :]).transpose(0, 1)[0]


def _first(order: Tensor, shares: Sequence[float], picture: Tensor) -> Tensor:
    """Masks (shares, 1, H, W) of the first pixels of an order."""
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    counts = torch.tensor([round(share * len(order)) for share in shares], device=order.device)
    return (rank < counts[:, None]).view(len(shares), 1, *picture.shape[1:])


def _answers(answer: Answer, pictures: Tensor) -> Tensor:
    """In float64 on the CPU."""
    with torch.inference_mode():
        return torch.cat([answer(some).double().cpu() for some in pictures.split(_TOGETHER)])


def _area(values: Tensor) -> float:
    return float((values[1:] + values[:-1]).mean() / 2)
