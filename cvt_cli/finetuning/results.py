"""What comes of a run, as files: metrics.csv, and the figures of its model card."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cvt_cli.base import files
from cvt_cli.checkpoints import cards
from cvt_cli.evaluation import metrics


def measured(correct: int, n: int) -> str:
    low, high = metrics.wilson(correct, n)
    return f"{cards.percent(correct, n)}, 95 % interval {100 * low:.2f} to {100 * high:.2f} %"


def write_metrics(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = ["epoch", "learning_rate", "training_loss", "val_loss", "val_top1", "val_top5"]
    content = io.StringIO()
    table = csv.writer(content, lineterminator="\n")
    table.writerow([*columns, "seconds", "step"])
    for row in rows:
        numbers = ["" if row[c] is None else f"{row[c]:.6g}" for c in columns]
        table.writerow([*numbers, f"{row['seconds']:.1f}", row["step"]])
    files.write_text(folder / "metrics.csv", content.getvalue())
