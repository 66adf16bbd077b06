"""Two models on the same images: which is better, and whether that can be chance."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cvt_cli.base.errors import DataError, UsageError
from cvt_cli.base.text import as_utf8, parsed_json
from cvt_cli.evaluation import paired_measures
from cvt_cli.evaluation.paired_measures import Difference
from cvt_cli.evaluation.resume import state_of
from cvt_cli.images import parquet_pages
from cvt_cli.images.table_files import refuse_repeated
from cvt_cli.prediction.answer_tables import require_parquet
from cvt_cli.prediction.answers import BETWEEN

SUFFIXES = (".jsonl", ".csv", ".parquet")
"""The kinds of predictions files, which `cvt evaluate` writes."""

RESAMPLES = 10_000
"""How often the images are drawn again, for the interval of the difference."""

_HINT = "`cvt evaluate --predictions FILE` writes what is compared here"


@dataclass(frozen=True)
class Line:
    """What one file says of one image."""

    path: str
    label: str  # the true class; of several those, joined by `BETWEEN`, empty where there is none
    correct: bool
    predicted: str | None  # the likeliest class, or the same of several; None if it was unreadable
    wnid: str | None  # of `predicted`, if known; two classes of ImageNet are called crane
    sha256: str | None = None  # of the image's file; tables do not say it
    several: bool = False  # an image may have any number of classes
    weight: float | None = None  # how much the image counts in measures; None where not said

    def answers_as(self, other: "Line") -> bool:
        """Whether both have the same likeliest class."""
        if self.wnid and other.wnid:
            return self.wnid == other.wnid
        return self.predicted == other.predicted


@dataclass(frozen=True)
class Comparison:
    """Counts over the images that both files have."""

    both_right: int
    only_a: int  # right in A only
    only_b: int
    both_wrong: int
    changed: tuple[tuple[Line, Line], ...]  # A's and B's line where the likeliest class differs
    only_in_a: int  # images that B's file lacks, and that are left out
    only_in_b: int
    measures: Mapping[str, Difference] = field(default_factory=dict)
    weighted: bool = False  # images count in `measures` by their weights
    differ: int | None = None  # images of one path and different contents; None if no hash says it
    unreadable: tuple[int, int] = (0, 0)  # images that A and B could not read, which count as wrong

    @property
    def n(self) -> int:
        """Images compared."""
        return self.both_right + self.only_a + self.only_b + self.both_wrong

    @property
    def correct_a(self) -> int:
        """Images that A has right."""
        return self.both_right + self.only_a

    @property
    def correct_b(self) -> int:
        """Images that B has right."""
        return self.both_right + self.only_b

    @property
    def difference(self) -> float:
        """B's accuracy minus A's, in percentage points."""
        return 100 * (self.only_b - self.only_a) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `difference`, in percentage points."""
        return bootstrap_interval(self.only_a, self.only_b, self.n)

    @property
    def p_value(self) -> float:
        """The two-sided p-value of McNemar's exact test."""
        return mcnemar(self.only_a, self.only_b)

    def to_json(self) -> dict[str, Any]:
        """The documented keys of ``--json``; accuracies are fractions."""
        return {
            "n": self.n,
            "only_in_a": self.only_in_a,
            "only_in_b": self.only_in_b,
            "different_pictures": self.differ,
            "unreadable_a": self.unreadable[0],
            "unreadable_b": self.unreadable[1],
            "accuracy_a": self.correct_a / self.n,
            "accuracy_b": self.correct_b / self.n,
            "difference_points": self.difference,
            "difference_points_interval": list(self.interval),
            "p_value": self.p_value,
            "both_right": self.both_right,
            "only_a_right": self.only_a,
            "only_b_right": self.only_b,
            "both_wrong": self.both_wrong,
            "weighted": self.weighted,
            "measures": {name: one.to_json() for name, one in self.measures.items()},
            "changed": [
                {"path": a.path, "label": a.label, "a": _class(a), "b": _class(b)}
                for a, b in self.changed
            ],
        }


def _class(line: Line) -> dict[str, Any] | None:
    if line.predicted is None:
        return None
    return {"label": line.predicted, "wnid": line.wnid, "correct": line.correct}


def compare(a: Sequence[Line], b: Sequence[Line]) -> Comparison:
    """Pair the lines by path, the first of a path with the first, and count.

    Raises:
        DataError: no image is in both, or the two differ on the true class of one.
    """
    others: dict[str, list[Line]] = {}
    for line in reversed(b):
        others.setdefault(line.path, []).append(line)
    pairs = [(line, others[line.path].pop()) for line in a if others.get(line.path)]
    if not pairs:
        raise DataError(
            "the two files have no image in common"
            + (f"; one begins with `{a[0].path}`, the other with `{b[0].path}`" if a and b else ""),
            hint="images are paired by path; evaluate both models on the same data",
        )
    for one, other in pairs:
        if one.label != other.label:
            raise DataError(
                f"the two files differ on the true class of `{one.path}`: "
                f"`{one.label}` and `{other.label}`",
                hint="compare two models on the same data",
            )
    weights = [_weight(one, other) for one, other in pairs]
    weighted = any(weight is not None for weight in weights)
    if weighted and None in weights:
        unsaid = pairs[weights.index(None)][0].path
        raise DataError(
            f"some images have a weight in these files, and `{unsaid}` has none",
            hint="evaluate anew; earlier versions did not write weights",
        )
    hashes = [(one.sha256, other.sha256) for one, other in pairs if one.sha256 and other.sha256]
    counts = {(x, y): 0 for x in (True, False) for y in (True, False)}
    for one, other in pairs:
        counts[one.correct, other.correct] += 1
    return Comparison(
        both_right=counts[True, True],
        only_a=counts[True, False],
        only_b=counts[False, True],
        both_wrong=counts[False, False],
        changed=tuple((one, other) for one, other in pairs if not one.answers_as(other)),
        only_in_a=len(a) - len(pairs),
        only_in_b=len(b) - len(pairs),
        weighted=weighted,
        measures=paired_measures.measure(pairs, np.array(weights) if weighted else None),
        differ=sum(one != other for one, other in hashes) if hashes else None,
        unreadable=(
            sum(one.predicted is None for one, _ in pairs),
            sum(other.predicted is None for _, other in pairs),
        ),
    )


def _weight(one: Line, other: Line) -> float | None:
    """An image's weight, as either file says it; raises DataError where the two differ."""
    said = {line.weight for line in (one, other)} - {None}
    if len(said) > 1:
        raise DataError(
            f"the two files differ on the weight of `{one.path}`: {one.weight:g} and "
            f"{other.weight:g}",
            hint="compare two models on the same data",
        )
    return said.pop() if said else None


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p-value of McNemar's exact test.

    If neither model is better, each image that only one has right is a fair coin's toss. The sum of
    the binomial's tail is of integers, so that nothing is rounded before the last division.
    """
    n, fewer = only_a + only_b, min(only_a, only_b)
    term = tail = 1
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << n))


def bootstrap_interval(only_a: int, only_b: int, n: int) -> tuple[float, float]:
    """95 % percentile interval of B's accuracy minus A's, in percentage points.

    The paired difference of an image is -1, 0 or 1, so that drawing n of n images with replacement
    is exactly a multinomial draw of three counts. Seed 0: the same counts give the same interval.
    """
    shares = np.array([only_a, only_b, n - only_a - only_b]) / n
    drawn = np.random.default_rng(0).multinomial(n, shares, size=RESAMPLES)
    low, high = np.percentile(100 * (drawn[:, 1] - drawn[:, 0]) / n, (2.5, 97.5))
    return float(low), float(high)


# --- predictions files


def read(path: Path) -> list[Line]:
    """Read what ``cvt evaluate --predictions`` wrote.

    Raises:
        UsageError: its suffix names no kind of file, or pyarrow is missing for Parquet.
        DataError: it cannot be read, or a line of it is no prediction.
    """
    readers = {".jsonl": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    suffix = path.suffix.lower()
    if suffix not in readers:
        accepted = ", ".join(f"`{suffix}`" for suffix in SUFFIXES)
        raise UsageError(f"`{path}` has no suffix of a predictions file; accepted are {accepted}")
    try:
        lines = [_line(row, where) for row, where in readers[suffix](path)]
    except OSError as error:
        raise DataError(f"cannot read `{path}`: {error.strerror or error}", hint=_HINT) from None
    except UnicodeDecodeError:
        raise DataError(f"`{path}` is not text in UTF-8", hint=_HINT) from None
    if not lines:
        raise DataError(f"`{path}` holds no predictions", hint=_HINT)
    return lines


def trained_on(path: Path) -> int | None:
    """How many of a file's images its model was trained on, as ``cvt evaluate`` noted it, or of a
    cross-validation its start; None where that is unknown, as of tables, or what was noted is of
    other lines."""
    try:
        if not state_of(path).exists():
            about = parsed_json(path.with_name("results.json").read_text(encoding="utf-8"))
            seen = about["trained_before"] if Path(about["out_of_fold"]).name == path.name else None
            return seen if isinstance(seen, int) else None
        state = parsed_json(state_of(path).read_text(encoding="utf-8"))
        whole = state.get("whole_bytes", state["bytes"])
        seen = state["n_trained_on"] if whole == path.stat().st_size else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return seen if isinstance(seen, int) else None


def _line(row: Mapping[str, Any], where: str) -> Line:
    """Check one row with the columns of a table.

    Raises:
        DataError: it is no prediction.
    """

    def text(key: str) -> str | None:
        value = row.get(key)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: `{key}` is {value!r}, not text", hint=_HINT)
        # Tables hold odd file names escaped, JSON may hold them as they are.
        return as_utf8(value) if value else None

    several = "labels" in row
    path, error, correct = text("path"), text("error"), row.get("correct")
    if several:  # an image may have several, or none
        label: str | None = _sorted(text("labels"))
        predicted = None if error else _sorted(text("predicted"))
    else:
        label, predicted = text("label"), text("label_1")
    if path is None or label is None or not isinstance(correct, bool):
        raise DataError(f"{where} lacks path, label or correct", hint=_HINT)
    if (error is None) == (predicted is None) or (error is not None and correct):
        raise DataError(f"{where} has neither a prediction nor an error", hint=_HINT)
    weight = row.get("weight")
    known = isinstance(weight, float | int) and not isinstance(weight, bool)
    if weight is not None and not (known and 0 < weight < float("inf")):
        raise DataError(f"{where}: `weight` is {weight!r}, no number above 0", hint=_HINT)
    more = text("wnid_1"), text("sha256"), several, weight
    return Line(path, label, correct, predicted, *more)


def _sorted(names: str | None) -> str:
    """The classes of an image in one order, whichever they were answered in."""
    return BETWEEN.join(sorted((names or "").split(BETWEEN)))


def _json_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            where = f"`{path}`, line {number}"
            try:
                row: dict[str, Any] = dict(parsed_json(line, unique=True))
                if "labels" in row:
                    row["labels"] = BETWEEN.join(row["labels"])
                    if "error" not in row:
                        row["predicted"] = BETWEEN.join(one["label"] for one in row["predictions"])
                elif "error" not in row:
                    best = row["predictions"][0]
                    row |= {"label_1": best["label"], "wnid_1": best["wnid"]}
            except (ValueError, TypeError, KeyError, IndexError):
                raise DataError(f"{where} is not a prediction", hint=_HINT) from None
            yield row, where


def _csv_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            if reader.fieldnames:
                refuse_repeated(reader.fieldnames, path)
            for row in reader:
                where = f"`{path}`, line {reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(
                        f"{where} has another number of values than columns", hint=_HINT
                    )
                correct = {"True": True, "False": False}.get(row.get("correct", ""))
                weight = _number(row["weight"]) if "weight" in row else None
                yield {**row, "correct": correct, "weight": weight}, where
        except csv.Error as error:
            raise DataError(
                f"`{path}`, line {reader.reader.line_num}: {error}", hint=_HINT
            ) from None


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:  # which is said with its place
        return text


_COLUMNS = (
    "correct",
    "weight",
    "path",
    "label",
    "error",
    "label_1",
    "wnid_1",
    "labels",
    "predicted",
)


def _parquet_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    require_parquet()
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        there = parquet.read_schema(path).names
        columns = [name for name in _COLUMNS if name in there]
        with parquet_pages.opened(path, columns) as file:
            for batch in file.iter_batches(columns=columns):
                found = [parquet_pages.values(column) for column in batch.columns]
                for row in zip(*found, strict=True):
                    number += 1
                    yield dict(zip(columns, row, strict=True)), f"`{path}`, row {number}"
    except pyarrow.ArrowException as error:
        raise DataError(f"`{path}` is not a Parquet file: {error}", hint=_HINT) from None
