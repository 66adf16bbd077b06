"""How much of the pictures a crop hides, and which of them are sideways."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.finetuning import geometry
from cvt_cli.spec.preprocessing import Preprocessing


def test_a_photograph_of_4_to_3_loses_43_percent_to_the_published_crop(tmp_path: Path) -> None:
    for name, size in (("wide.png", (400, 300)), ("high.png", (300, 400))):
        Image.new("RGB", size).save(tmp_path / name)
    (tmp_path / "bad.png").write_text("no image")
    names = ("wide.png", "high.png", "bad.png")
    images = LabelledImages(tmp_path, ("a",), names, np.zeros(3, np.int64))

    hidden = geometry.of_plan(images, Preprocessing.published(224, 224))["hidden_by_crop"]

    assert hidden == pytest.approx(1 - 224 * 224 / (256 * 341))
    assert round(hidden, 2) == 0.43


def test_square_images_lose_nothing_to_a_crop_of_all_of_them() -> None:
    images = LabelledImages(
        Path(), ("a",), ("0",), np.zeros(1, np.int64), np.zeros((1, 32, 32, 3), np.uint8)
    )

    found = geometry.of_plan(images, Preprocessing(64, 64, "squash", crop_pct=1.0))

    assert found == {"hidden_by_crop": 0, "turned_by_exif": 0}


def test_pictures_that_exif_says_are_to_be_turned_are_counted(tmp_path: Path) -> None:
    exif = Image.Exif()
    for number, (suffix, orientation) in enumerate(
        (("jpg", 6), ("webp", 3), ("jpg", 1), ("png", None), ("tif", 6), ("jpg", None))
    ):
        exif[274] = orientation or 1
        more = {} if orientation is None else {"exif": exif}
        Image.new("RGB", (40, 30)).save(tmp_path / f"{number}.{suffix}", **more)
    names = tuple(sorted(path.name for path in tmp_path.iterdir()))
    images = LabelledImages(tmp_path, ("a",), names, np.zeros(6, np.int64))

    found = geometry.of_plan(images, Preprocessing.published(224, 224))

    assert found["turned_by_exif"] == pytest.approx(2 / 6)


def test_few_pictures_on_other_machines_are_fetched_for_it(tmp_path: Path) -> None:
    """One after the other, before anything is trained."""
    Image.new("RGB", (40, 30)).save(tmp_path / "0.png")
    asked = []

    class Table:
        table = tmp_path / "t.csv"

        def open(self, name: str, row: int) -> BinaryIO:
            asked.append(row)
            return (tmp_path / "0.png").open("rb")

        def size(self, name: str, row: int) -> int | None:
            return None

    names, rows = tuple(f"http://host/{n}.png" for n in range(500)), np.arange(500, dtype=np.int32)
    images = LabelledImages(
        tmp_path, ("a",), names, np.zeros(500, np.int64), table=Table(), rows=rows
    )

    found = geometry.of_plan(images, Preprocessing.published(224, 224))

    assert found["hidden_by_crop"] == pytest.approx(1 - 224 * 224 / (256 * 341))
    assert len(asked) == 20 and max(asked) == 499
