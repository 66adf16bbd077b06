"""Rare classes: factors of the loss, images drawn more often, and what is said of them before."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import text
from cvt_cli.base.errors import UsageError
from cvt_cli.base.limits import HEAVIEST_WEIGHT, LIGHTEST_WEIGHT

ClassWeights = bool | str | dict[str, float]
"""``balanced``, ``balanced^P``, or the factor of each class that is named; True is the first, as
plans of earlier versions have it, and False is none."""

_ACCEPTED = (
    "accepted are `balanced`, `balanced^P` with P from 0 to 1 such as `balanced^0.5`, "
    "`CLASS=WEIGHT,...`, and a .json or .csv file of classes and weights"
)

_MOST_NAMED = 5


def parsed(told: str | Mapping[str, float]) -> ClassWeights:
    """What follows ``--class-weights``; a file is read. Factors by name are only checked.

    Raises:
        UsageError: it is nothing of that.
    """
    pairs: list[tuple[str, Any]]
    if isinstance(told, Mapping):
        pairs = list(told.items())
    elif not isinstance(told, str):
        raise UsageError(f"--class-weights is `{told}`; {_ACCEPTED}")
    elif told == "balanced" or told.startswith("balanced^"):
        _power(told)
        return told
    elif "=" in told and not Path(told).is_file():
        pairs = [
            (name, value) for name, _, value in (one.rpartition("=") for one in told.split(","))
        ]
    else:
        pairs = list(_read(told))
    found: dict[str, float] = {}
    for name, weight in pairs:
        try:
            value = float(weight)
        except (TypeError, ValueError):
            value = math.nan
        if (
            not isinstance(name, str) or not name or not LIGHTEST_WEIGHT <= value <= HEAVIEST_WEIGHT
        ):  # so for NaN
            raise UsageError(
                f"--class-weights: the weight of `{name}` is `{weight}`; it must be a number above "
                f"0, from {LIGHTEST_WEIGHT:g} to {HEAVIEST_WEIGHT:g}",
                hint="write it as CLASS=WEIGHT, or give a file if a name has a comma or = in it",
            )
        if name in found:
            raise UsageError(f"--class-weights names `{name}` twice")
        found[name] = value
    if not found:
        raise UsageError(f"--class-weights: `{told}` names no class; {_ACCEPTED}")
    return found


def _power(told: str | bool) -> float:
    """P of ``balanced^P``; 1 of ``balanced``, and of True, which says the same."""
    if told is True:
        return 1.0
    told = str(told)
    try:
        power = float(told.partition("^")[2]) if "^" in told else 1.0
    except ValueError:
        power = math.nan
    if not 0 <= power <= 1:
        raise UsageError(f"--class-weights is `{told}`; {_ACCEPTED}")
    return power


def _read(told: str) -> Iterator[tuple[str, Any]]:
    """The pairs of a file: a JSON object, or a CSV table of two columns with or without a head."""
    path = Path(told).expanduser()
    suffix = path.suffix.lower()
    try:
        if not path.is_file() or suffix not in (".json", ".csv"):
            raise UsageError(f"--class-weights is `{told}`; {_ACCEPTED}")
        if suffix == ".json":
            content = text.read_json(path, unique=True)
            if not isinstance(content, dict):
                raise ValueError("expected is a JSON object of classes and weights")
            yield from content.items()
            return
        rows = [row for row in csv.reader(io.StringIO(text.read_text(path))) if row]
        if any(len(row) != 2 for row in rows):
            raise ValueError("expected are two columns, class and weight")
        heads = [[cell.strip().lower() for cell in row] for row in rows[:1]]
        yield from (
            (row[0], row[1]) for row in (rows[1:] if heads == [["class", "weight"]] else rows)
        )
    except (OSError, ValueError, csv.Error, json.JSONDecodeError) as error:
        raise UsageError(f"--class-weights: cannot read `{told}`: {error}") from None


def factors(
    wanted: ClassWeights, labels: NDArray[np.int64], classes: Sequence[str]
) -> NDArray[np.float64]:
    """The factor (classes,) of the loss of each class's images.

    ``balanced`` is n / (classes x its images), so that every class weighs the same; ``balanced^P``
    is that to the power P, so that the mean over the images is 1; 0 changes nothing.

    Args:
        wanted: as `parsed` gives it, but for False.
        labels: of the training images.
        classes: the names.

    Raises:
        UsageError: a class is named that is not there.
    """
    if isinstance(wanted, dict):
        return _as_told(wanted, classes)
    counts = np.maximum(np.bincount(labels, minlength=len(classes)), 1)
    power = _power(wanted)
    found = (len(labels) / (len(classes) * counts)) ** power
    if power != 1.0:
        found *= len(labels) / found[labels].sum()
    return np.asarray(found, np.float64)


def positive_factors(
    wanted: ClassWeights, sizes: NDArray[np.int64], images: int, classes: Sequence[str]
) -> NDArray[np.float64]:
    """The factor (classes,) of the loss of what images have of each class, where they may have
    several.

    ``balanced`` is the images without a class by those with it, so that both sides weigh the same;
    ``balanced^P`` is that to the power P.

    Args:
        wanted: as of `factors`.
        sizes: (classes,) training images that have each.
        images: how many there are.
        classes: the names.

    Raises:
        UsageError: a class is named that is not there.
    """
    if isinstance(wanted, dict):
        return _as_told(wanted, classes)
    power = _power(wanted)
    return np.asarray((np.maximum(images - sizes, 1) / np.maximum(sizes, 1)) ** power, np.float64)


def _as_told(wanted: dict[str, float], classes: Sequence[str]) -> NDArray[np.float64]:
    """The factors that are told, and 1 for the other classes."""
    known = set(classes)
    if unknown := [name for name in wanted if name not in known]:
        raise UsageError(
            f"--class-weights names {', '.join(f'`{name}`' for name in unknown)}, which "
            f"{'is no class' if len(unknown) == 1 else 'are no classes'} of the data",
            hint="the classes are "
            + ", ".join(f"`{name}`" for name in classes[:20])
            + (", …" if len(classes) > 20 else ""),
        )
    return np.array([wanted.get(name, 1.0) for name in classes])


def balanced_order(
    labels: NDArray[np.int64], generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An epoch in which every class comes equally often, with as many images as there are.

    Every image of a class comes equally often too, but for one time.

    Returns:
        The images in their order (n,), and for each how often it came before in this epoch.
    """
    present = np.unique(labels)
    share, more = divmod(len(labels), len(present))
    longer = set(generator.permutation(present)[:more].tolist())
    indices, times = [], []
    for label in present.tolist():
        members = generator.permutation(np.flatnonzero(labels == label))
        rounds = np.arange(share + (label in longer))
        indices.append(members[rounds % len(members)])
        times.append(rounds // len(members))
    order = generator.permutation(len(labels))
    return np.concatenate(indices)[order], np.concatenate(times)[order]


def of_plan(
    training: NDArray[np.int64], validation: NDArray[np.int64], classes: Sequence[str]
) -> dict[str, list[str]]:
    """The classes of which there is too little to train on or to choose by, for a plan.

    Args:
        training: images of each class (classes,) to train on.
        validation: likewise to choose by.
        classes: the names.
    """
    counts = [training, validation]
    return {
        "classes_with_one_image": [classes[i] for i in np.flatnonzero(counts[0] == 1).tolist()],
        "classes_not_validated": [classes[i] for i in np.flatnonzero(counts[1] == 0).tolist()],
    }


def described(plan: Mapping[str, Any]) -> Iterator[str]:
    """What a plan says of rare classes, and of what is done for them, in lines for a person."""
    data, settings = plan["data"], plan["settings"]
    if few := data.get("classes_with_one_image"):
        yield (
            f"1 training image each: {_named(few)}; what is learned of "
            f"{'it' if len(few) == 1 else 'them'} is that one picture, "
            "varied, and weights or sampling add nothing to it"
        )
    if missing := data.get("classes_not_validated"):
        yield (
            f"no validation image: {_named(missing)}; mistakes there do not show when the best "
            "epoch is chosen, nor in the validation accuracy"
        )
    if used := plan.get("class_weights"):
        ordered = sorted(used.items(), key=lambda item: -item[1])
        told = [f"`{name}` {value:.3g}" for name, value in ordered]
        if len(told) > 2 * _MOST_NAMED:
            told = [*told[:_MOST_NAMED], "…", *told[-_MOST_NAMED:]]
        kind = settings["class_weights"]
        name = "balanced" if kind is True else kind if isinstance(kind, str) else "as given"
        yield f"class weights ({name}): {', '.join(told)}"
    if settings.get("sampler") == "balanced":
        yield (
            f"sampler balanced: each class about {data['train_n'] / data['classes']:.0f} times in "
            f"an epoch, an image of `{data['smallest_class']}` "
            f"{data['train_n'] / data['classes'] / max(1, data['smallest_n']):.3g} times"
        )
    if (select := settings.get("select", "top1")) != "top1":
        yield f"the best epoch is the one with the best validation {select} (--select)"
    if aim := settings.get("threshold_for"):
        yield (
            "several labels an image: a threshold for each class is chosen on the validation "
            f"images, for {aim} (--threshold-for)"
        )


def _named(classes: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in classes[:_MOST_NAMED])
    more = len(classes) - _MOST_NAMED
    return shown + (f" and {text.counted(more, 'more class')}" if more > 0 else "")
