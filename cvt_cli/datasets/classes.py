"""The classes of a data set as those of a model: by name, WordNet identifier, number or map."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import text
from cvt_cli.base.errors import DataError
from cvt_cli.base.text import counted
from cvt_cli.spec.labels import Labels


def match_classes(
    classes: tuple[str, ...], labels: Labels, label_map: Path | None = None
) -> tuple[NDArray[np.int64], str]:
    """The model's class index of each of a data set's classes, (n,), and how they were matched.

    First by the model's own class names, since a model that was fine-tuned on folders named 0, 1,
    10, … counts them in that order; then, for ImageNet models only, by WNID or as numbers.

    Args:
        classes: of the data.
        labels: of the model.
        label_map: a JSON object that says it for every class of the data, by the model's class
            name, WNID or index; nothing else is then tried.

    Raises:
        DataError: none of these fits every class, a name means two of the model's classes, or the
            map is unreadable or does not fit the data or the model.
    """
    if label_map is not None:
        return _by_map(classes, labels, label_map), f"the label map `{label_map}`"
    ways: list[tuple[str, list[str | None]]] = [("the model's class names", [*labels.names])]
    if labels.wnids is not None:
        ways.append(("WordNet identifiers", list(labels.wnids)))
    if labels.are_imagenet:
        ways.append(("class numbers", [str(index) for index in range(len(labels))]))
    for how, keys in ways:
        index = _positions(keys)
        if index.keys() >= set(classes):
            if ambiguous := [name for name in classes if index[name] is None]:
                raise DataError(
                    f"class `{ambiguous[0]}` is the name of several classes of the model",
                    hint="say which one is meant, with `--label-map FILE`",
                )
            return np.array([index[name] for name in classes], dtype=np.int64), how
    own = set(labels.names)
    missing = [name for name in classes if name not in own]
    near = {text.plain(name): name for name in labels.names}
    alike = [(name, near[text.plain(name)]) for name in missing if text.plain(name) in near]
    told = "".join(
        f"; `{name}` differs from the model's `{other}` only in {text.LOOKS}"
        for name, other in alike[:5]
    )
    raise DataError(
        f"{len(missing)} of {counted(len(classes), 'class')} of the data are not classes of the "
        f"model, which has {len(labels)}: {text.some(missing)}{told}",
        hint=f"the model's classes are {text.some(labels.names)}; give `--label-map FILE`: JSON "
        "that maps each class of the data to a class name, WordNet ID or index of the model",
    )


def _positions(keys: Sequence[str | None]) -> dict[str, int | None]:
    """Where each stands; None for one that stands in several places."""
    found: dict[str, int | None] = {}
    for position, key in enumerate(keys):
        if key:  # a class without a WNID has none
            found[key] = None if key in found else position
    return found


def _by_map(classes: tuple[str, ...], labels: Labels, path: Path) -> NDArray[np.int64]:
    try:
        table = text.read_json(path, unique=True)
    except OSError as error:
        raise DataError(f"cannot read the label map `{path}`: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"the label map `{path}` is not JSON: {error}") from None
    if not isinstance(table, dict):
        raise DataError(
            f"the label map `{path}` is not a JSON object with the data's classes as keys"
        )
    # Entries for other classes are harmless: one map serves a set and parts of it.
    if missing := [name for name in classes if name not in table]:
        raise DataError(f"the label map `{path}` lacks classes of the data: {text.some(missing)}")
    keys = [_positions(labels.names), _positions(labels.wnids or ())]
    indices = [
        _class_index(table[name], labels, keys, f"of `{name}` in `{path}`") for name in classes
    ]
    return np.array(indices, dtype=np.int64)


def _class_index(
    value: object, labels: Labels, keys: list[dict[str, int | None]], where: str
) -> int:
    """A model's class by its name, WNID (``keys``) or index."""
    if type(value) is int and 0 <= value < len(labels):  # True is an int too
        return value
    for positions in keys:
        if isinstance(value, str) and value in positions:
            if (index := positions[value]) is not None:
                return index
            raise DataError(
                f"`{value}` {where} is the name of several classes of the model",
                hint="give the index instead: a number without quotes",
            )
    raise DataError(
        f"{json.dumps(value)} {where} is not a class of the model; accepted are its class names, "
        f"an index from 0 to {len(labels) - 1}" + (", and WordNet IDs" if labels.wnids else "")
    )
