"""The curves of a training run, and the bars of a benchmark."""

import html
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvt_cli.base.errors import CvtError, UsageError
from cvt_cli.evaluation import figures


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


def test_the_curves_are_a_picture_of_three_panels(tmp_path: Path) -> None:
    figures.draw_curves(rows([0.3, 0.5, 0.7, 0.65]), tmp_path / "curves.png", "first")

    with Image.open(tmp_path / "curves.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    assert width > 2 * height
    blue = abs(pixels - (0x00, 0x72, 0xB2)).sum(axis=2) < 30  # the training loss
    orange = abs(pixels - (0xD5, 0x5E, 0x00)).sum(axis=2) < 30  # validation
    loss, top1, rate = (
        slice(width * a // 11, width * b // 11) for a, b in ((0, 4), (4, 8), (8, 11))
    )
    assert blue[:, loss].sum() > 200 and orange[:, loss].sum() > 200
    assert orange[:, top1].sum() > 200 and not blue[:, top1].any()
    assert blue[:, rate].sum() > 200 and not orange[:, rate].any()
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
    figures.draw_curves(rows(top1), tmp_path / "curves.svg", "first")

    drawn = (tmp_path / "curves.svg").read_text()
    assert f"<!-- first; {best} -->" in drawn
    for said in (
        *("Loss (nats)", "Top-1 on validation images (%)", "Learning rate"),
        *("epoch", "training", "validation", "0", "100"),  # all of the scale
    ):
        assert f"<!-- {said} -->" in drawn  # letters are outlines, with their text beside them


def test_the_marked_epoch_is_the_one_that_the_run_chose_by_another_measure(tmp_path: Path) -> None:
    figures.draw_curves(
        rows([0.7, 0.6, 0.65]), tmp_path / "curves.svg", "first", chosen=(1, "loss")
    )

    assert (
        "<!-- first; best by loss: 60.00 % after epoch 2 -->"
        in (tmp_path / "curves.svg").read_text()
    )


def test_a_run_without_a_judged_epoch_has_no_best(tmp_path: Path) -> None:
    figures.draw_curves(rows([None, None]), tmp_path / "curves.svg", "first")

    assert "best:" not in (tmp_path / "curves.svg").read_text()


def test_many_epochs_are_drawn(tmp_path: Path) -> None:
    figures.draw_curves(
        rows([number / 300 for number in range(300)]), tmp_path / "curves.svg", "first"
    )

    assert "best: 99.67 % after epoch 300" in (tmp_path / "curves.svg").read_text()


def test_new_curves_take_the_place_of_the_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    figures.draw_curves(rows([0.5]), path, "first")

    figures.draw_curves(rows([0.5, 0.75]), path, "first")

    assert "best: 75.00 % after epoch 2" in path.read_text()


def test_curves_that_cannot_be_drawn_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CvtError, match="cannot write `.*curves.png`"):
        figures.draw_curves(rows([0.5]), tmp_path / "file" / "curves.png", "first")
    with pytest.raises(UsageError, match="has no suffix of a picture"):
        figures.draw_curves(rows([0.5]), tmp_path / "curves.doc", "first")

    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(UsageError, match="matplotlib is not installed"):
        figures.draw_curves(rows([0.5]), tmp_path / "curves.png", "first")


# --- a benchmark


def measured(*rows: dict[str, object], **more: object) -> dict[str, object]:
    """What `cvt benchmark --json` prints of these rows, the first of which is the baseline."""
    side = {
        **{"model": "13", "engine": "torch", "precision": "fp32", "batch_size": 1},
        **{"images_per_sec": 12.3, "images_per_sec_range": [11.0, 13.0]},
        **{"ratio": 1.25, "ratio_range": [1.2, 1.3]},
    }
    return {
        **{"model": "13", "height": 224, "width": 224, "weights": "random", "rounds": 9},
        **{"device": "cpu", "hardware": "2 threads", "rows": [{**side, **row} for row in rows]},
        **more,
    }


def said_in(document: dict[str, object], folder: Path) -> list[str]:
    """The texts of a benchmark's picture."""
    path = folder / "rates.svg"
    figures.draw_benchmark(document, path)
    found = re.findall(r"<!-- (.+?) -->", path.read_text(), re.DOTALL)
    return [line for text in found for line in html.unescape(text).splitlines()]


def test_the_picture_of_a_benchmark_says_what_ran_where_and_against_what(tmp_path: Path) -> None:
    baseline = {"engine": "transformers", "ratio": 1.0, "ratio_range": [1.0, 1.0]}
    apart = {"engine": "openvino", "ratio": None, "ratio_range": [0.4, 2.1]}

    said = said_in(measured(baseline, {}, apart), tmp_path)

    assert "Images per second of CvT-13 at 224x224" in said
    for text in ("1 image at a time", "transformers fp32", "torch fp32", "openvino fp32"):
        assert text in said
    rates = [text for text in said if text.startswith("12.3")]
    assert rates == ["12.3", "12.3  ×1.25", "12.3  ×0.4 to 2.1"]
    note = " ".join(said)
    assert "cpu, 2 threads. Median and range of 9 rounds, random weights." in note
    assert "×: rate compared with transformers fp32" in note


def test_the_picture_of_files_names_them_without_their_folders(tmp_path: Path) -> None:
    files = [f"/home/ada/exports/{name}" for name in ("small/a.onnx", "large/a.onnx", "b.xml")]

    said = said_in(
        measured(*({"model": name} for name in files), model=None, height=None, weights="exported"),
        tmp_path,
    )

    assert {"small/a.onnx", "large/a.onnx", "b.xml"} <= set(said)
    note = " ".join(said)
    assert "Images per second of small/a.onnx, large/a.onnx, b.xml" in note
    assert "compared with small/a.onnx, torch fp32" in note
    assert "None" not in note and "ada" not in note and "transformers" not in note


def test_without_ratios_none_is_spoken_of(tmp_path: Path) -> None:
    said = said_in(measured({"ratio": None, "ratio_range": None, "batch_size": 8}), tmp_path)

    assert "8 images at a time" in said and "12.3" in said
    assert "×" not in " ".join(said)


def test_a_long_name_stays_inside_the_picture(tmp_path: Path) -> None:
    long = [f"the best of the many runs of {'a ' * 50}{number}.onnx" for number in (1, 2)]

    said = said_in(measured(*({"model": name} for name in long), model=None), tmp_path)

    ends = [text for text in said if text.endswith(("1.onnx", "2.onnx"))]
    assert ends and all(text.startswith("the best…") and len(text) <= 32 for text in ends)
    assert max(map(len, said)) < 95
