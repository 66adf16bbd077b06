"""The linear probe: the features of every image once, and the best linear head on them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cvt_cli.base.ahead import ahead
from cvt_cli.base.errors import DataError, ImageError
from cvt_cli.base.progress import Progress, silent
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.engines.protocol import Engine, features_of, prepared
from cvt_cli.finetuning.job import remedy
from cvt_cli.finetuning.tensor_files import read_tensors, tensors_hash, write_tensors
from cvt_cli.model.network import CvT
from cvt_cli.spec.preprocessing import Preprocessing

SAVED_EVERY = 2_000
"""Images after which what was computed is written; of many, after a tenth more of them, since the
file is written whole each time."""

PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(2, -13, -1))
"""10, 3.2, 1 … 1e-6: half the factor of the weights' squares, beside the mean loss in nats."""

PATIENCE = 2
"""Penalties in a row that are not better on the validation images, after which no weaker one is
tried: the weaker, the longer it takes."""

# Images that are computed on at a time, and the most logits of theirs in float64 (64 MiB).
_ROWS = 8192
_LOGITS = 2**23

_KEPT_BYTES = 2**29
"""Of the training images' probabilities that are kept at a time; the others are computed again
where they are needed, which takes about half as long again."""

# How far the value is from the least at most, about, as a part of it.
_TO_COMPARE = 1e-6
_SOLVED = 1e-14


def cached_features(
    engine: Engine,
    data: LabelledImages,
    preprocessing: Preprocessing,
    path: Path,
    key: str,
    *,
    batch_size: int,
    workers: int,
    progress: Progress = silent,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What the head reads of every image (n, C), and the images' classes (n,); computed once.

    The features are kept in ``path``, and what there is of them when the computation is
    interrupted is kept too: the next call goes on from there.

    Args:
        engine: the model.
        data: the images.
        preprocessing: of the model.
        path: of the file; one that is damaged or has another key is replaced.
        key: all that the features depend on, as text: the model, its input, the images.
        batch_size: images per call of the engine.
        workers: threads that read and decode.
        progress: told of every batch; not opened where all is there.

    Raises:
        DataError: an image cannot be read.
        CheckpointError: a feature is infinite or not a number.
        CvtError: the file cannot be written.
    """
    known = _stored(path, key)
    parts = [known] if known is not None and len(known) <= len(data) else []
    done = saved = sum(map(len, parts))

    def prepare(index: int) -> NDArray[Any]:
        try:
            return prepared(engine, data.load(index, exif=False), preprocessing)
        except ImageError as error:
            raise DataError(
                f"cannot train on `{data.place(index)}`: {error}",
                hint=remedy(data, index),
            ) from None

    def save() -> None:
        nonlocal saved
        parts[:] = [np.concatenate(parts)]
        _store(path, key, parts[0])
        saved = len(parts[0])

    if done < len(data):
        ready = ahead(prepare, range(done, len(data)), workers, 2 * batch_size)
        with progress("computing features", len(data), done=done) as advance:
            try:
                while batch := [array for _, array in islice(ready, batch_size)]:
                    parts.append(features_of(engine, batch))
                    done += len(batch)
                    if done - saved >= max(SAVED_EVERY, saved // 10):
                        save()
                    advance(len(batch), "")
            finally:  # also on Ctrl-C and at an image that cannot be read
                if saved < done:
                    save()
    return parts[0], data.labels


def backbone_hash(model: CvT) -> str:
    """A SHA-256 of all tensors that features depend on: those of the head are left out."""
    found = model.state_dict()
    return tensors_hash({name: t for name, t in found.items() if not name.startswith("head.")})


def _stored(path: Path, key: str) -> NDArray[np.float32] | None:
    """What the file holds under this key; None if it is missing or damaged."""
    try:
        tensors, about = read_tensors(path)
        return tensors["features"].numpy() if about.get("key") == key else None
    except (OSError, ValueError, LookupError):
        return None


def _store(path: Path, key: str, features: NDArray[np.float32]) -> None:
    write_tensors(path, {"features": torch.from_numpy(features)}, {"key": key})


class Tried(NamedTuple):
    """What a penalty came to."""

    penalty: float
    train_loss: float  # mean cross-entropy in nats, with class weights, without the penalty
    val_loss: float  # mean cross-entropy in nats
    val_top1: float  # fraction of the validation images


@dataclass(frozen=True)
class Solution:
    """A linear head on features as the model gives them."""

    weight: NDArray[np.float32]  # (classes, C)
    bias: NDArray[np.float32]  # (classes,)
    penalty: float  # the one chosen
    val_correct: int  # validation images that this head is right about
    rows: list[Tried]  # of all penalties tried, the strongest first


def solve(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    val_features: NDArray[np.float32],
    val_labels: NDArray[np.int64],
    num_classes: int,
    class_weights: NDArray[np.floating] | None = None,
    progress: Progress = silent,
    image_weights: NDArray[np.floating] | None = None,
) -> Solution:
    """Multinomial logistic regression with an L2 penalty on the weights, chosen by validation.

    Minimised is the mean cross-entropy plus penalty / 2 times the sum of the squared weights of the
    standardised features; biases are not penalised. (scikit-learn's LogisticRegression with
    C = 1 / (penalty x n) behind a StandardScaler.) Of `PENALTIES` the one with the highest top-1 on
    the validation images is taken; of equals that with the lower loss, and then the stronger one.

    All is computed in float64, each penalty from the head of the one before. Penalties are compared
    by heads whose loss is within a millionth of the least, and the one chosen is solved to
    convergence. The same arguments on as many threads give the same bits. Beside its arguments it
    needs about 16 bytes for every feature of every training image, 80 for every weight of the head,
    and at most 1 GB.

    Args:
        features: of the training images (n, C); scale and offset of each do not matter.
        labels: their classes (n,).
        val_features: of the validation images (m, C).
        val_labels: their classes (m,).
        num_classes: of the head.
        class_weights: of each class's images in the training loss (classes,), whose mean is then
            the weighted one.
        progress: told of every penalty.
        image_weights: likewise of each training image (n,).
    """
    rows, targets = torch.from_numpy(features), torch.from_numpy(labels)
    shares = torch.ones(len(targets), dtype=torch.float64)
    if class_weights is not None:
        shares = torch.from_numpy(class_weights).double()[targets]
    if image_weights is not None:
        shares *= torch.from_numpy(image_weights).double()
    shares /= shares.sum()
    val_rows, val_targets = torch.from_numpy(val_features), torch.from_numpy(val_labels)
    val_shares = torch.full((len(val_targets),), 1 / len(val_targets), dtype=torch.float64)
    mean, scale = _moments(rows)
    # Along the axes of the features' covariance, where the problem is nearly diagonal. The penalty
    # stays what it is: a rotation changes no sum of squares. Axes without variance, as there are
    # with fewer images than features, would have weights of 0.
    parts = _parts(rows, num_classes)
    covariance = sum(part.T @ part for part in _standardised(parts, mean, scale)) / len(rows)
    variances, axes = torch.linalg.eigh(covariance)
    wide = variances > 1e-12 * variances[-1]
    axes = axes[:, wide]
    # A column of ones is what the bias is the weight of.
    turned = [F.pad(part @ axes, (0, 1), value=1.0) for part in _standardised(parts, mean, scale)]
    squares = F.pad(variances[wide], (0, 1), value=1.0)
    of_parts = _parts(targets, num_classes), _parts(shares, num_classes)

    def nearer(penalty: float, start: Tensor, enough: float) -> tuple[Tensor, Solution]:
        """A head from another, in the columns above and as the features are."""
        ridge = torch.full_like(squares, penalty)
        ridge[-1] = 0.0
        head = _minimum(_Problem(turned, *of_parts, squares, ridge), start, enough)
        weight = head[:, :-1] @ axes.T / scale
        bias = (head[:, -1] - weight @ mean).float()
        weight = weight.float()
        train_loss, _ = _judged(rows, targets, shares, weight, bias)
        val_loss, correct = _judged(val_rows, val_targets, val_shares, weight, bias)
        row = Tried(penalty, train_loss, val_loss, correct / len(val_labels))
        return head, Solution(weight.numpy(), bias.numpy(), penalty, correct, [row])

    head = torch.zeros(num_classes, len(squares), dtype=torch.float64)
    tried: list[Tried] = []
    best, best_head, best_key = 0, head, (-1, 0.0)
    # How many it will be is not known, and each takes longer than the one before.
    with progress("solving the head", None, unit="turns") as advance:
        for number, penalty in enumerate(PENALTIES):
            head, solution = nearer(penalty, head, _TO_COMPARE)
            tried += solution.rows
            key = (solution.val_correct, -tried[-1].val_loss)
            if key > best_key:
                best, best_head, best_key = number, head, key
            advance(1, f"penalty {penalty:.1e}: top-1 {tried[-1].val_top1:.4f}")
            if number == best + PATIENCE:
                break
        _, solution = nearer(PENALTIES[best], best_head, _SOLVED)
    tried[best] = solution.rows[0]
    return replace(solution, rows=tried)


def _parts(tensor: Tensor, num_classes: int) -> tuple[Tensor, ...]:
    """What is computed on at a time of something that has a row for each image."""
    return tensor.split(max(1, min(_ROWS, _LOGITS // num_classes)))


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature; infinite where it varies by rounding alone, so
    that the feature becomes 0 and so does its weight."""
    mean = rows.mean(0, dtype=torch.float64)
    squares = sum(((part.double() - mean) ** 2).sum(0) for part in rows.split(_ROWS))
    scale = torch.sqrt(torch.as_tensor(squares / len(rows)))
    scale[scale <= 1e-6 * mean.abs()] = torch.inf
    return mean, scale


def _standardised(parts: Iterable[Tensor], mean: Tensor, scale: Tensor) -> Iterator[Tensor]:
    return ((part.double() - mean) / scale for part in parts)


def _judged(
    rows: Tensor, targets: Tensor, shares: Tensor, weight: Tensor, bias: Tensor
) -> tuple[float, int]:
    """Mean cross-entropy in nats of a head, and how many images it is right about."""
    loss, correct = 0.0, 0
    parts = (_parts(tensor, len(weight)) for tensor in (rows, targets, shares))
    for part, classes, share in zip(*parts, strict=True):
        logits = part.double() @ weight.double().T + bias.double()
        loss += float(share @ F.cross_entropy(logits, classes, reduction="none"))
        correct += int((logits.argmax(1) == classes).sum())
    return loss, correct


@dataclass(frozen=True)
class _Problem:
    """What is minimised, by a head (classes, r): a convex function.

    The images come in parts. The probabilities (n, classes) are kept of the first parts alone;
    those of the others are computed again wherever they are needed.
    """

    rows: Sequence[Tensor]  # what the head reads of the images (n, r)
    targets: Sequence[Tensor]  # classes (n,)
    shares: Sequence[Tensor]  # of each image in the loss (n,), 1 together
    squares: Tensor  # mean of the squares of each column of `rows` (r,)
    ridge: Tensor  # penalty on each column's weights (r,)

    def at(self, head: Tensor) -> tuple[float, Tensor, list[Tensor]]:
        """Value, gradient (classes, r) and the probabilities that are kept."""
        value = float((self.ridge / 2 * head**2).sum())
        gradient = self.ridge * head
        kept: list[Tensor] = []
        room = _KEPT_BYTES
        for part, classes, share in zip(self.rows, self.targets, self.shares, strict=True):
            logs = torch.log_softmax(part @ head.T, dim=1)
            right = classes[:, None]
            value -= float(share @ logs.gather(1, right)[:, 0])
            p = logs.exp()
            room -= p.nbytes
            if room >= 0:
                kept.append(p)
            slope = p * share[:, None]
            gradient += slope.scatter_add(1, right, -share[:, None]).T @ part
        return value, gradient, kept

    def probabilities(self, head: Tensor, kept: list[Tensor]) -> Iterator[Tensor]:
        """Of each part's images (n, classes)."""
        yield from kept
        for part in self.rows[len(kept) :]:
            yield torch.log_softmax(part @ head.T, dim=1).exp()

    def curvature(self, probabilities: Iterable[Tensor]) -> Tensor:
        """About the diagonal of the Hessian (classes, r)."""
        spreads = (s @ (p * (1 - p)) for p, s in zip(probabilities, self.shares, strict=True))
        spread = torch.as_tensor(sum(spreads))  # (classes,)
        return (spread[:, None] * self.squares + self.ridge).clamp_min(1e-12)

    def hessian(self, probabilities: Iterable[Tensor], direction: Tensor) -> Tensor:
        """The Hessian times a direction (classes, r)."""
        result = self.ridge * direction
        for part, p, share in zip(self.rows, probabilities, self.shares, strict=True):
            change = p * (part @ direction.T)
            change -= p * change.sum(1, keepdim=True)
            result += (change * share[:, None]).T @ part
        return result


def _minimum(problem: _Problem, head: Tensor, enough: float) -> Tensor:
    """Where the function is least, from a start: Newton's method, each step by conjugate gradients.

    It ends where the value is about ``enough`` times itself above the least.

    (Nocedal and Wright, Numerical Optimization, algorithm 7.1. L-BFGS needs twice the time for four
    digits of the weights, and its line search ends in rounding before there are more.)
    """
    value, gradient, kept = problem.at(head)
    for _ in range(100):
        curvature = problem.curvature(problem.probabilities(head, kept))
        size = float((gradient**2 / curvature).sum().sqrt())
        if size**2 / 2 <= enough * value:
            break
        # Solve Hessian x step = -gradient, the closer the nearer the end is.
        step = torch.zeros_like(head)
        rest = -gradient
        direction = rest / curvature
        product = float((rest * direction).sum())
        for _ in range(500):
            bent = problem.hessian(problem.probabilities(head, kept), direction)
            length = product / float((direction * bent).sum())
            step += length * direction
            rest -= length * bent
            scaled = rest / curvature
            before, product = product, float((rest * scaled).sum())
            if product**0.5 < min(0.3, size**0.5) * size:
                break
            direction = scaled + product / before * direction
        # Go less far where the value does not fall as its slope says, but for rounding.
        slope = float((gradient * step).sum())
        for halvings in range(30):
            length = 0.5**halvings
            kept.clear()  # before others are computed
            new_value, new_gradient, kept = problem.at(head + length * step)
            if new_value <= value + 1e-4 * length * slope + 1e-14 * value:
                break
        head = head + length * step
        value, gradient = new_value, new_gradient
    return head
