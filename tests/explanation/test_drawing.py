"""Colours keep the order of values, in grey too; pictures and pages show what was found."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvt_cli.explanation import drawing
from tests_shared import CHELSEA


@pytest.mark.parametrize("signed", [False, True])
def test_equal_steps_of_a_scale_are_equal_steps_of_lightness(signed: bool) -> None:
    table = drawing.colours(signed)
    grey = np.asarray(Image.fromarray(table[None]).convert("L"))[0].astype(int)
    encoded = table / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    lightness = np.where(  # CIE L*, which the scale is not made by
        luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance
    )

    assert len({tuple(colour) for colour in table.tolist()}) >= 250
    assert (np.diff(grey) >= 0).all() and grey[-1] - grey[0] > 190
    steps = np.diff(lightness[::15])
    assert steps.min() > 0.6 * steps.mean() and steps.max() < 1.4 * steps.mean()


def test_a_signed_map_keeps_nothing_in_the_middle_and_an_unseen_part_stays_so() -> None:
    values = np.array([[-1.0, 0.0, 0.5, np.nan]], np.float32)

    assert drawing.scaled(values, True)[0, :3] == pytest.approx([0, 0.5, 0.75], abs=0.02)
    assert drawing.scaled(values, False)[0, 0] == 0
    assert np.isnan(drawing.scaled(values, True)[0, 3])
    assert (drawing.scaled(np.zeros((2, 2), np.float32), True) == 0.5).all()


def test_a_name_of_any_length_makes_no_picture_as_wide() -> None:
    row = ("cat" * 100_000, "occlusion", np.zeros((64, 64), np.float32), True)

    sheet = drawing.panel(Image.new("RGB", (64, 64)), [row])

    assert sheet.width < 3000


def test_the_page_holds_all_maps_and_needs_nothing_else(
    cvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.open(CHELSEA).resize((90, 60)).save("<b>cat.png")
    result = cvt(
        "explain", "<b>cat.png", "missing.png", "--model", "cvt-nano-cifar10", "--html",
        "page.html", "--method", "hirescam", "--method", "attention",
    )  # fmt: skip

    assert result.exit_code == 1
    page = Path("page.html").read_text()
    assert "&lt;b&gt;" in page and "<b>cat" not in page
    assert "no such file or directory" in page and "The crop leaves out 33 %" in page
    assert not re.search(r'(src|href)="(?!data:|%3Cb%3Ecat)', page)
    (found,) = re.findall(r'<script type="application/json">(.*?)</script>', page)
    maps = json.loads(found)["maps"]
    assert [(m["method"], m["class"]) for m in maps] == [
        ("hirescam, stage 1", 0), ("attention", None), ("hirescam, stage 1", 1),
        ("hirescam, stage 1", 2),
    ]  # fmt: skip
    assert maps[1]["heads"]["shape"] == [2, 2]
    assert [len(block) for block in maps[1]["heads"]["values"]] == [5, 5, 5]
