"""The curves of a training run."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvt_cli.base.errors import CvtError, UsageError
from cvt_cli.evaluation import plots


def rows(top1: list[float | None]) -> list[dict[str, float | None]]:
    return [
        {
            "epoch": float(number),
            "learning_rate": 1e-3,
            "training_loss": 2.0 / number,
            "val_loss": None if value is None else 2.5 / number,
            "val_top1": value,
            "val_top5": value,
            "seconds": 3.5,
        }
        for number, value in enumerate(top1, start=1)
    ]


def test_the_curves_are_a_picture_of_two_panels(tmp_path: Path) -> None:
    plots.draw_curves(rows([0.3, 0.5, 0.7, 0.65]), tmp_path / "curves.png")

    with Image.open(tmp_path / "curves.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    assert width > 2 * height
    blue = abs(pixels - (0x00, 0x72, 0xB2)).sum(axis=2) < 30  # the training loss
    orange = abs(pixels - (0xD5, 0x5E, 0x00)).sum(axis=2) < 30  # validation
    assert blue[:, : width // 2].sum() > 200 and not blue[:, width // 2 :].any()
    assert orange[:, : width // 2].sum() > 200 and orange[:, width // 2 :].sum() > 200
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


@pytest.mark.parametrize(
    ("top1", "best"),
    [
        ([0.3, 0.5, 0.725, 0.65], "best: 72.50 % after epoch 3"),
        ([0.5, 0.7, 0.7], "best: 70.00 % after epoch 2"),
        ([0.25], "best: 25.00 % after epoch 1"),
        ([None, 0.125, float("nan")], "best: 12.50 % after epoch 2"),
    ],
)
def test_the_best_epoch_is_marked(tmp_path: Path, top1: list[float | None], best: str) -> None:
    plots.draw_curves(rows(top1), tmp_path / "curves.svg")

    drawn = (tmp_path / "curves.svg").read_text()
    assert best in drawn
    for said in ("loss (nats)", "validation top-1 (%)", "epoch", "training", "validation"):
        assert f"<!-- {said} -->" in drawn  # letters are outlines, with their text beside them


def test_a_run_without_a_judged_epoch_has_no_best(tmp_path: Path) -> None:
    plots.draw_curves(rows([None, None]), tmp_path / "curves.svg")

    assert "best:" not in (tmp_path / "curves.svg").read_text()


def test_many_epochs_are_drawn(tmp_path: Path) -> None:
    plots.draw_curves(rows([number / 300 for number in range(300)]), tmp_path / "curves.svg")

    assert "best: 99.67 % after epoch 300" in (tmp_path / "curves.svg").read_text()


def test_new_curves_take_the_place_of_the_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    plots.draw_curves(rows([0.5]), path)

    plots.draw_curves(rows([0.5, 0.75]), path)

    assert "best: 75.00 % after epoch 2" in path.read_text()


def test_curves_that_cannot_be_drawn_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CvtError, match="cannot write `.*curves.png`"):
        plots.draw_curves(rows([0.5]), tmp_path / "file" / "curves.png")
    with pytest.raises(UsageError, match="names no kind of picture"):
        plots.draw_curves(rows([0.5]), tmp_path / "curves.doc")

    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(UsageError, match="matplotlib is not installed"):
        plots.draw_curves(rows([0.5]), tmp_path / "curves.png")
