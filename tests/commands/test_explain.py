"""cvt explain as a user meets it."""

import json
import os
import re
import signal
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests_shared import CHELSEA, Result

NANO = ("--model", "cvt-nano-cifar10")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A photograph in two folders, and a file that is none."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.open(CHELSEA).resize((90, 60)).save(tmp_path / "photos" / name / "cat.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "photos" / "broken").write_bytes(b"not even by its name")
    return tmp_path


def test_pictures_are_written_for_all_images_that_can_be_read(cvt, folder: Path) -> None:
    result = cvt("explain", "photos", *NANO)

    assert result.exit_code == 1
    assert "error: `photos/broken.jpg`: " in result.stderr
    assert "1 of 3 images could not be read" in result.stderr
    assert sorted(p.name for p in Path("explanations").iterdir()) == ["cat-2.png", "cat.png"]
    with Image.open("explanations/cat.png") as picture:
        assert picture.width > 3 * 320
    assert len(result.stdout.splitlines()) == 3  # a head and two images

    again = cvt("explain", "photos", *NANO)

    assert again.exit_code == 1
    assert "`explanations` exists and was not replaced" in again.stderr


def test_pictures_that_the_next_reading_takes_for_images_are_told(cvt, folder: Path) -> None:
    inside = cvt("explain", "photos/a", ".", *NANO, "-o", "maps")
    beside = cvt("explain", "photos/a", *NANO, "-o", "photos/maps")

    assert "the pictures in `maps` are images of `.` too" in inside.stderr
    assert beside.exit_code == 0 and "are images of" not in beside.stderr


@pytest.mark.parametrize("inputs", [["photos/a"], ["photos"], ["photos/a/*.png"], ["@list.txt"]])
def test_no_photograph_is_replaced_by_its_picture(cvt, folder: Path, inputs: list[str]) -> None:
    Path("list.txt").write_text("photos/b/cat.png\nphotos/a/cat.png\n")
    before = Path("photos/a/cat.png").read_bytes()

    result = cvt("explain", *inputs, *NANO, "--output", "photos/a", "--overwrite")

    assert result.exit_code == 2
    assert "`photos/a/cat.png` is an input, and a picture in `photos/a` could" in result.stderr
    assert Path("photos/a/cat.png").read_bytes() == before


@pytest.mark.parametrize("place", ["photos/a", "photos/a/cat.png", "link.png"])
@pytest.mark.parametrize("protocol", ["", "file://"])
def test_no_photograph_in_a_folder_is_replaced(
    cvt, folder: Path, place: str, protocol: str
) -> None:
    Path("link.png").symlink_to("photos/a/cat.png")
    before = Path("photos/a/cat.png").read_bytes()
    found = f"{protocol}{Path('photos/a').resolve()}"

    result = cvt("explain", found, *NANO, "--output", place, "--overwrite")

    assert result.exit_code == 2 and "is an input, and " in result.stderr
    assert Path("photos/a/cat.png").read_bytes() == before


def test_a_picture_of_another_process_is_not_replaced(
    cvt, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cvt_cli.explanation import explainer

    load = explainer.load

    def meanwhile(*arguments: object, **named: object) -> object:
        Path("explanations").mkdir()
        Path("explanations/cat.png").write_text("another's")
        return load(*arguments, **named)

    monkeypatch.setattr(explainer, "load", meanwhile)
    result = cvt("explain", "photos/a", *NANO, "--method", "attention")

    assert result.exit_code == 1
    assert "`explanations/cat.png` exists and was not replaced" in result.stderr
    assert Path("explanations/cat.png").read_text() == "another's"


def test_an_image_in_an_archive_may_have_a_name_that_no_file_can_have(cvt, folder: Path) -> None:
    name = 120 * "猫"
    with zipfile.ZipFile("photos.zip", "w") as archive:
        archive.write("photos/a/cat.png", f"{name}.png")

    result = cvt("explain", "photos.zip", *NANO, "--method", "attention")

    assert result.exit_code == 0, result.stderr
    (picture,) = Path("explanations").iterdir()
    assert name.startswith(picture.stem) and len(picture.stem) > 60


def test_what_is_explained_is_what_predict_says(cvt, folder: Path) -> None:
    inputs = ("photos/a", "photos/b", *NANO)
    predicted = cvt("predict", *inputs, "--engine", "torch", "--json").json["results"]

    explained = cvt("explain", *inputs, "-k", "2", "--json").json["results"]

    for one, other in zip(explained, predicted, strict=True):
        assert one["path"] == other["path"]
        for mine, theirs in zip(one["predictions"], other["predictions"], strict=True):
            assert (mine["index"], mine["label"]) == (theirs["index"], theirs["label"])
            assert abs(mine["score"] - theirs["score"]) < 1e-5
        assert [e["class"] for e in one["explanations"]] == one["predictions"][:2]


def test_numbers_and_json_tell_where_the_map_lies(cvt, folder: Path) -> None:
    result = cvt(
        "explain", "photos/a", *NANO, "--method", "attention", "--method", "layercam",
        "--target", "dog", "--npz", "maps.npz", "--json",
    )  # fmt: skip

    (found,) = result.json["results"]
    assert found["size"] == [60, 90] and found["seen"] == [15, 0, 75, 60]
    assert found["not_seen_share"] == pytest.approx(1 / 3, abs=1e-6)
    attention, layercam = found["explanations"]
    assert layercam["class"]["label"] == "dog" and layercam["stage"] == 1
    with np.load("maps.npz") as file:
        maps = dict(file)
    assert maps["paths"].tolist() == [found["path"]]
    assert json.loads(str(maps["conditions"]))["model"] == "cvt-nano-cifar10"
    assert maps["0/attention/heads"].shape == (3, 5, 2, 2)
    assert maps["0/attention/heads_grid"].tolist() == [16, 0.5]
    assert maps["0/layercam/5/map"].shape == (8, 8)
    photo = maps["0/layercam/5/photo"]
    assert photo.shape == (60, 90) and photo.dtype == np.float32
    assert np.isfinite(photo[:, 15:75]).all() and np.isnan(photo[:, :15]).all()
    left, top, right, bottom = layercam["box"]
    inside = np.nan_to_num(photo)[top:bottom, left:right].sum()
    assert inside >= 0.5 * np.nansum(photo)


def test_all_that_is_written_says_what_showed_through_transparent_pixels(cvt, folder: Path) -> None:
    given = ("explain", "photos/a", *NANO, "--method", "attention")

    result = cvt(*given, "--background", "white", "--npz", "maps.npz", "--json")
    without = cvt(*given, "--json")

    assert result.json["background"] == "white" and "background" not in without.json
    with np.load("maps.npz") as file:
        assert json.loads(str(file["conditions"]))["background"] == "white"
    assert "`mauvish` is not a color" in cvt(*given, "--background", "mauvish").stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--target", "unicorn"), 2, "this model has no class `unicorn`; it has `airplane`, "),
        (("--target", "10"), 2, "there is no class 10; this model has 10 classes, counted from 0"),
        (("--target", " "), 2, "this model has no class ` `; it has `airplane`, "),
        (("--target", 5000 * "9"), 2, "this model has no class `9999"),
        (("--against", "cat"), 2, "--against `cat` names one class; accepted are two"),
        (("--against", "cat,cat"), 2, "--against `cat,cat` names the same class twice"),
        (("--against", "cat,dog", "-k", "2"), 2, "--top-k: --against names the classes already"),
        (("--stage", "3", "--method", "layercam"), 2, "there is no stage 3 in this network; "),
        (("--target", "cat", "--method", "attention"), 2, "--target: no effect, since a map of "),
        (("--against", "cat,dog", "--method", "attention"), 2, "--against: no effect, since a map"),
        (("-k", "2", "--method", "attention"), 2, "--top-k: no effect, since a map of --method "),
        (("--method", "magic"), 2, "`magic` is not a method; accepted are occlusion, "),
        (("-o", "why.jpg"), 2, "--output `why.jpg` is neither a folder nor a picture"),
        (("-o", "why.png"), 2, "`why.png` is a picture of one image, but there are several"),
        (("-o", "photos/broken"), 2, "--output `photos/broken` is neither a folder nor a picture"),
        (("-o", "photos/broken/x"), 1, "`photos/broken` is not a folder\n\nhint: choose another "),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)  # fmt: skip
def test_what_cannot_be_is_said(
    cvt: Callable[..., Result], folder: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = cvt("explain", "photos", *NANO, *arguments)

    assert result.exit_code == code
    assert message in result.stderr
    assert not list(Path().glob("why*")) and not Path("explanations").exists()


def test_one_picture_is_not_written_where_only_reading_tells_how_many_images_there_are(
    cvt: Callable[..., Result], folder: Path
) -> None:
    with tarfile.open("one.tar", "w") as archive:
        archive.add("photos/a/cat.png")

    result = cvt("explain", "one.tar", *NANO, "-o", "why.png")

    assert result.exit_code == 2
    assert "a picture of one image, but only reading tells how many there are" in result.stderr


def test_a_graph_has_no_gradients(cvt, folder: Path) -> None:
    Path("model.onnx").write_bytes(b"")

    result = cvt("explain", "photos/a", "--model", "model.onnx")

    assert result.exit_code == 2
    assert "`model.onnx` is an exported graph: it has no gradients" in result.stderr
    assert "hint: give the checkpoint that it was exported from" in result.stderr


def test_ctrl_c_says_how_many_are_explained_and_ends_with_130(
    cvt: Callable[..., Result], folder: Path, python_takes_ctrl_c: None
) -> None:
    def press() -> None:
        deadline = time.monotonic() + 60
        while not Path("maps/cat.png").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    result = cvt("explain", *["photos/a"] * 500, *NANO, "-o", "maps", "--html", "page.html")
    pressing.join()

    assert result.exit_code == 130
    said = re.search(r"^stopped after (\d+) images?$", result.stderr, re.MULTILINE)
    assert said and 1 <= int(said[1]) < 500
    assert not Path("page.html").exists()  # which appears whole or not at all


@pytest.mark.parametrize(("typed", "near"), [("--methods", "--method"), ("--targett", "--target")])
def test_a_near_option_is_named(cvt: Callable[..., Result], typed: str, near: str) -> None:
    result = cvt("explain", "photo.jpg", typed, "cat")

    assert (result.exit_code, result.stdout) == (2, "")
    said = result.stderr.partition(f"No such option: {typed}")[2]
    assert re.search(rf"{near}\b(?!s)", said), result.stderr


def test_a_class_has_an_effect_on_attention_where_its_map_is_scored(cvt, folder: Path) -> None:
    options = ("photos/a", *NANO, "--method", "attention", "--score", "--json")

    scores = [
        cvt("explain", *options, "--target", name).json["results"][0]["explanations"][0]["scores"]
        for name in ("cat", "dog")
    ]

    assert scores[0] != scores[1]


def test_scores_stand_beside_those_of_maps_that_know_nothing(cvt, folder: Path) -> None:
    result = cvt("explain", "photos/a", "photos/b", *NANO, "--score", "--json")

    found = result.json["scores"]
    assert found["methods"].keys() == {"occlusion", "random", "centre"}
    for row in found["methods"].values():
        assert row["n"] == 2
        low, high = row["saco"]["interval"]
        assert -1 <= low <= row["saco"]["mean"] <= high <= 1
    assert found["methods"]["random"]["saco_above_random"] is None


def test_each_method_has_its_own_count_of_maps(cvt, folder: Path) -> None:
    """Attention is of no class, so that of an image's three classes it has one map."""
    options = ("photos/a", *NANO, "--top-k", 3, "--method", "attention", "--method", "layercam")

    rows = cvt("explain", *options, "--score", "--json").json["scores"]["methods"]
    printed = cvt("explain", *options, "--score").stdout

    counts = {method: row["n"] for method, row in rows.items()}
    assert counts == {"attention": 1, "layercam": 3, "random": 3, "centre": 3}
    told = dict(re.findall(r"^ *([a-z]+) +(\d+) ", printed.partition("above random")[2], re.M))
    assert {method: int(told[method]) for method in counts} == counts
