"""Pictures and groups that lie in two parts of a set, before anything is trained on them."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvt_cli.datasets import datacheck, groups
from cvt_cli.datasets.layouts import open_dataset
from cvt_cli.datasets.table_sets import Told

CLASSES = ("cat", "dog")
PARTS = ("train", "val", "test")
DRY = ["--variant", "nano", "--dry-run"]


def frames(root: Path, videos: dict[str, str], each: int = 4) -> Path:
    """Frames of made-up videos, of noise: ``part/class/video_frame.png``.

    Args:
        root: of the set.
        videos: the part of each video, such as "train"; "all" spreads its frames over all parts.
        each: frames of a video.
    """
    generator = np.random.default_rng(len(videos))
    for number, (video, part) in enumerate(videos.items()):
        for frame in range(each):
            own = PARTS[frame % 3] if part == "all" else part
            folder = root / own / CLASSES[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{video}_{frame}.png")
    return root


def apart(root: Path) -> Path:
    return frames(root, {f"v{n}{part}": part for part in PARTS for n in range(4)})


def test_frames_of_one_video_in_every_part_are_found_by_their_group(cvt, tmp_path: Path) -> None:
    root = frames(apart(tmp_path / "set"), {"shared": "all"})

    plain = cvt("finetune", root, *DRY)
    found = cvt("finetune", root, *DRY, "--group-by", r"(\w+)_\d+\.png")
    allowed = cvt("finetune", root, *DRY, "--group-by", r"(\w+)_\d+\.png", "--allow-overlap")

    assert plain.exit_code == 0, plain.stderr
    assert found.exit_code == 1
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert f"`{one}` and `{other}` share 1 group: `shared`" in found.stderr
    assert "hint: " in found.stderr and "--allow-overlap" in found.stderr
    assert allowed.exit_code == 0
    assert "warning: `train` and `val` share 1 group: `shared` (--allow-overlap)" in allowed.stderr


@pytest.mark.parametrize("suffix", ["png", "bmp", "jpg"])
def test_the_same_picture_in_two_parts_is_found_whatever_its_file(
    cvt, tmp_path: Path, suffix: str
) -> None:
    root = apart(tmp_path / "set")
    picture = Image.open(root / "train" / "cat" / "v0train_0.png")
    copy = root / "test" / "dog" / f"copy.{suffix}"
    picture.save(copy, **({"compress_level": 0} if suffix == "png" else {}))
    if suffix == "jpg":  # a lossy file of it has other pixels, which a lossless one has in turn
        Image.open(copy).save(root / "val" / "cat" / "same.bmp")

    result = cvt("finetune", root, *DRY)

    assert result.exit_code == 1
    if suffix == "jpg":
        assert "`val` and `test` share 1 picture, such as `cat/same.bmp` and `dog/copy.jpg`" in (
            result.stderr
        )
    else:
        assert (
            "`train` and `test` share 1 picture, such as `cat/v0train_0.png` and "
            f"`dog/copy.{suffix}`"
        ) in result.stderr


def test_jpegs_that_are_alike_at_an_eighth_of_their_size_are_not_the_same(
    cvt, tmp_path: Path
) -> None:
    for part, value in (("train", 0), ("val", 1)):
        for name in CLASSES:
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(3):
                pixels = np.full((32, 32, 3), 40 * number + (name == "dog") * 20 + 100, np.uint8)
                pixels[0, 0] += 60 * value  # which its mean over 8 x 8 pixels hardly shows
                file = tmp_path / part / name / f"{part}{number}.jpg"
                Image.fromarray(pixels).save(file, quality=95)

    different = cvt("finetune", tmp_path, *DRY)
    (tmp_path / "val/cat/same.jpg").write_bytes((tmp_path / "train/cat/train0.jpg").read_bytes())
    same = cvt("finetune", tmp_path, *DRY)

    assert different.exit_code == 0, different.stderr
    assert "`train` and `val` share 1 picture, such as `cat/train0.jpg` and `cat/same.jpg`" in (
        same.stderr
    )


def test_a_picture_is_found_though_another_of_its_part_is_alike_at_an_eighth_of_its_size(
    cvt, tmp_path: Path
) -> None:
    greys = {"train": {"cat": 100, "dog": 200}, "val": {"cat": 20, "dog": 60}}
    for part, of_classes in greys.items():
        for name, grey in of_classes.items():
            (tmp_path / part / name).mkdir(parents=True)
            pixels = np.full((32, 32, 3), grey, np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / name / "a.jpg", quality=95)
            pixels[0, 0] += 20  # which its mean over 8 x 8 pixels does not show
            Image.fromarray(pixels).save(tmp_path / part / name / "b.jpg", quality=95)
    (tmp_path / "val/dog/copy.jpg").write_bytes((tmp_path / "train/cat/b.jpg").read_bytes())

    result = cvt("finetune", tmp_path, *DRY)

    assert result.exit_code == 1
    assert "`train` and `val` share 1 picture, such as `cat/b.jpg` and `dog/copy.jpg`" in (
        result.stderr
    )


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_part_so_large_that_headers_alone_are_decoded_is_compared_by_its_files(
    cvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    root = apart(tmp_path / "set")
    picture = root / "train" / "cat" / f"one.{suffix}"
    Image.open(root / "train" / "cat" / "v0train_0.png").save(picture)
    (root / "test" / "dog" / f"copy.{suffix}").write_bytes(picture.read_bytes())
    monkeypatch.setattr(datacheck, "DECODED_UP_TO", 16)  # fewer than `train` alone has

    result = cvt("finetune", root, *DRY)

    assert result.exit_code == 1
    assert f"`train` and `test` share 1 picture, such as `cat/one.{suffix}` and" in result.stderr


def test_groups_are_set_aside_whole_so_that_none_crosses(cvt, tmp_path: Path) -> None:
    root = frames(tmp_path / "set", {f"v{n}": "train" for n in range(10)}) / "train"
    rows = [(f.relative_to(root), f.parent.name, f.name[:2]) for f in sorted(root.rglob("*.png"))]
    with (root / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "patient"), *rows])
    short = ["--variant", "nano", "--epochs", 1, "--batch-size", 8, "--warmup-epochs", 0]

    for data, told in ((root, ["--group-by", r"(v\d+)_"]), (root / "t.csv", [])):
        run = tmp_path / f"run{len(told)}"
        result = cvt("finetune", data, *told, *short, "--val-fraction", 0.2, "-o", run)

        assert result.exit_code == 0, result.stderr
        aside = json.loads((run / "split.json").read_text())["validation"]
        videos = {name[4:6] for name in aside}
        assert len(videos) == 2 and len(aside) == 8  # all frames of a video of each class
        assert {name[:3] for name in aside} == set(CLASSES)
    assert (
        "--group-by: 10 groups of images; `cat/v0_0.png` is of `v0`"
        in cvt("finetune", root, *DRY, "--group-by", r"(v\d+)_").stderr
    )


@pytest.mark.parametrize("seed", range(10))
def test_a_group_that_alone_has_two_rare_classes_is_trained_on(seed: int) -> None:
    labels = np.array([n % 3 for n in range(30)] + [3, 3, 3, 4, 4, 4])
    patients = np.array([n % 10 for n in range(30)] + [3] * 6)

    aside = groups.set_aside(labels, patients, 0.1, seed)

    assert aside is not None and aside.any() and not aside[30:].any()
    assert set(labels[~aside]) == set(range(5)) and not set(patients[aside]) & set(patients[~aside])


def test_groups_whose_names_look_alike_are_told(tmp_path: Path) -> None:
    root = frames(tmp_path / "set", dict.fromkeys(("P1", "p1", "p2", "P2"), "train"))
    rows = [(f.relative_to(root), f.parent.name, f.name[:2]) for f in sorted(root.rglob("*.png"))]
    with (root / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "patient"), *rows])

    for data, told in ((root / "train", Told(group_by="[pP][0-9]")), (root / "t.csv", Told())):
        said: list[str] = []
        open_dataset(str(data), "train", root, say=said.append, told=told)
        assert said[-1].startswith("`P1` and `p1` differ in blanks, the case of letters or ")
        assert said[-1].endswith(" alone, and are taken as different groups; so do 1 more")


def test_a_group_that_cannot_be_told_is_refused(cvt, tmp_path: Path) -> None:
    root = frames(tmp_path / "set", {f"v{n}": "train" for n in range(4)})

    other = cvt("finetune", root, *DRY, "--group-by", r"video(\d)")
    broken = cvt("evaluate", root / "train", "--model", "cvt-nano-cifar10", "--group-by", "(v")
    alone = cvt("finetune", root, *DRY, "--group-by", r"cat|dog")

    assert other.exit_code == 1
    assert "finds no group in the paths of 16 of 16 images, such as `cat/v0_0.png`" in other.stderr
    assert broken.exit_code == 2 and "`(v` is no regular expression" in broken.stderr
    assert alone.exit_code == 1 and "every class lies in one group alone" in alone.stderr


def test_evaluate_reports_the_groups_of_the_paths(cvt, tmp_path: Path) -> None:
    root = frames(tmp_path / "set", {f"v{n}": "val" for n in range(4)})

    result = cvt("evaluate", root, "--model", "cvt-nano-cifar10", "--group-by", r"v\d", "--json")

    assert [group["group"] for group in result.json["groups"]["groups"]] == ["v0", "v1", "v2", "v3"]


def test_of_many_groups_the_worst_are_shown(cvt, tmp_path: Path) -> None:
    root = frames(tmp_path / "set", {f"v{n}": "val" for n in range(24)}, each=1)

    result = cvt("evaluate", root, "--model", "cvt-nano-cifar10", "--group-by", r"v\d+")

    lines = [line for line in result.stdout.splitlines() if line.startswith("group ")]
    assert len(lines) == 21 and lines[-1] == "group   4 more are no worse (--json has all)"


def test_copies_of_one_file_on_both_sides_of_what_is_held_out_are_told(cvt, tmp_path: Path) -> None:
    root = frames(tmp_path, {f"v{number}": "train" for number in range(6)}) / "train"
    for name in CLASSES:  # a copy in another class is wrong, and makes nothing too good
        shutil.copy(root / "cat" / "v0_0.png", root / name / "same.png")
    (root / "cat" / "v0_0.png").unlink()
    without = [cvt("finetune", root, *DRY, *more).stderr for more in ((), ("--folds", 3))]
    for path in sorted(root.glob("*/*")):
        shutil.copy(path, path.with_name(f"{path.stem}-copy.png"))

    held_out = cvt("finetune", root, *DRY)
    folds = cvt("finetune", root, *DRY, "--folds", 3)
    kept = cvt("finetune", root, *DRY, "--group-by", "v[0-9]+_[0-9]+|same")

    two = (
        "warning: 2 of 25 images are copies of an image in another class, such as `cat/same.png`, "
    )
    assert all(one.count("warning") == one.count(two) == 1 for one in without), without
    assert "warning: 5 of the 5 images held out are copies of images to train on" in held_out.stderr
    assert "images have a copy in another fold: what is measured on them is" in folds.stderr
    assert all(one.exit_code == 0 for one in (held_out, folds, kept))
    assert "copies of images to train on" not in kept.stderr
