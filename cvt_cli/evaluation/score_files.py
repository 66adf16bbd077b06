"""All probabilities, and the confusion matrix, of an evaluation in files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import files, text
from cvt_cli.base.errors import UsageError
from cvt_cli.base.text import as_utf8
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.evaluation.measure_outcomes import Measures
from cvt_cli.evaluation.run_models import Subject
from cvt_cli.prediction.answer_tables import require_parquet
from cvt_cli.prediction.answers import apart
from cvt_cli.spec.labels import Labels

_ROWS_AT_ONCE = 4096


def check(scores: Path | None, confusion: Path | None, resume: bool) -> None:
    """Raises UsageError for a file that cannot be written, or not be whole."""
    suffix = scores.suffix.lower() if scores else ""
    if scores is not None and suffix not in (".npy", ".parquet"):
        raise UsageError(
            f"scores cannot be written as `{scores}`; accepted are `.npy` and `.parquet`"
        )
    if scores is not None and resume:
        raise UsageError(
            "--scores needs every image's probabilities, of which the file of --resume has the "
            "likeliest only",
            hint="leave --resume out",
        )
    if suffix == ".parquet":
        require_parquet()
    if confusion is not None and confusion.suffix.lower() != ".csv":
        raise UsageError(f"a confusion matrix cannot be written as `{confusion}`; accepted is .csv")


def about(scores: Path) -> Path:
    """The file that says what the rows and columns of a .npy file are."""
    return scores.with_name(scores.name + ".json")


def write_scores(
    path: Path, one: Subject, data: LabelledImages, conditions: Mapping[str, Any]
) -> None:
    """Write the probabilities (n, classes) of a model, float32, NaN where no image could be read.

    A row for each image, in the data's order. Beside ``FILE.npy`` stands ``FILE.npy.json``, with
    ``paths``, ``labels`` (places among ``classes``) and the conditions; Parquet holds all itself.

    Raises:
        CvtError: a file cannot be written.
    """
    assert one.outcomes is not None and one.outcomes.scores is not None
    scores, labels = one.outcomes.scores, one.right(data)
    told = {**conditions, "classes": list(one.labels.names)}
    if path.suffix.lower() == ".parquet":
        return _write_parquet(path, scores, labels, data, one.labels, told)
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, scores, allow_pickle=False)
    rows = {"paths": [as_utf8(name) for name in data.names], "labels": _places(labels)}
    files.write_text(about(path), json.dumps({**told, **rows}) + "\n")


def _places(labels: NDArray[Any]) -> list[Any]:
    """The index of each image's class (n,), or where there may be several, a list of them."""
    if labels.ndim == 1:
        return labels.tolist()  # type: ignore[no-any-return]
    return [np.flatnonzero(row).tolist() for row in labels]


def _write_parquet(
    path: Path,
    scores: NDArray[np.float32],
    labels: NDArray[Any],
    data: LabelledImages,
    names: Labels,
    told: Mapping[str, Any],
) -> None:
    import pyarrow
    from pyarrow import parquet

    count, several = scores.shape[1], labels.ndim == 2
    text, number = pyarrow.string(), pyarrow.int32()
    schema = pyarrow.schema(
        [
            ("path", pyarrow.string()),
            ("label", pyarrow.list_(text) if several else text),
            ("index", pyarrow.list_(number) if several else number),
            ("scores", pyarrow.list_(pyarrow.float32())),
        ],
        metadata={"cvt": json.dumps(told)},
    )
    with files.replacing(path) as temporary, parquet.ParquetWriter(temporary, schema) as table:
        for first in range(0, len(scores), _ROWS_AT_ONCE):
            rows = range(first, min(first + _ROWS_AT_ONCE, len(scores)))
            part, right = scores[rows.start : rows.stop], _places(labels[rows.start : rows.stop])
            named: list[Any] = (
                [names.names[label] for label in right]
                if not several
                else [[names.names[label] for label in of_image] for of_image in right]
            )
            # Not lists of a fixed size: no pyarrow before 23 reads those with one that is missing.
            missing = np.isnan(part[:, 0])
            ends = np.cumsum(np.where(missing, 0, count), dtype=np.int32)
            offsets = pyarrow.array(np.append(np.int32(0), ends), mask=np.append(missing, False))
            values = pyarrow.array(part[~missing].reshape(-1), pyarrow.float32())
            table.write_table(
                pyarrow.Table.from_arrays(
                    [
                        pyarrow.array([as_utf8(data.names[row]) for row in rows]),
                        pyarrow.array(named, schema.field("label").type),
                        pyarrow.array(right, schema.field("index").type),
                        pyarrow.ListArray.from_arrays(offsets, values),
                    ],
                    schema=schema,
                )
            )


def write_confusion(path: Path, found: Measures | None, labels: Labels) -> None:
    """Write the whole matrix as CSV: a row for each class of the images, a column for each answer.

    The last column counts the images that could not be read, if there are any.

    Raises:
        CvtError: the file cannot be written.
    """
    cells = found.cells if found else ()
    said = sorted({cell.answered for cell in cells if cell.answered is not None})
    said = sorted({*said, *(cell.label for cell in cells)})
    columns: list[int | None] = [*said]
    if any(cell.answered is None for cell in cells):
        columns.append(None)
    place = {label: number for number, label in enumerate(columns)}
    rows: dict[int, list[int]] = {}
    for cell in cells:
        row = rows.setdefault(cell.label, [0] * len(columns))
        row[place[cell.answered]] = cell.n
    unreadable = apart("unreadable", labels.names)
    heads = [unreadable if label is None else labels.names[label] for label in columns]
    lines = [text.csv_row(["labelled \\ predicted", *heads])]
    lines += [text.csv_row([labels.names[label], *row]) for label, row in sorted(rows.items())]
    files.write_text(path, "\n".join(lines) + "\n")
