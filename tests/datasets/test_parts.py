"""The parts of a set, lone folders around it, and class folders."""

import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from cvt_cli.base.errors import DataError
from cvt_cli.datasets.labelled import LabelledImages, Split
from cvt_cli.datasets.layouts import open_dataset, open_given
from cvt_cli.images import finding
from small_sets import (
    class_folders,
)
from tests_shared import test_data


def test_train_and_val_or_test_are_taken_from_a_root(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"a": 3, "b": 2})
    class_folders(tmp_path / "test", {"a": 1, "b": 1})

    train = open_dataset(str(tmp_path), "train", tmp_path)
    test = open_dataset(str(tmp_path), "test", tmp_path)
    class_folders(tmp_path / "val", {"b": 4})
    val = open_dataset(str(tmp_path), "test", tmp_path)

    assert (len(train), train.classes, train.labels.tolist()) == (5, ("a", "b"), [0, 0, 0, 1, 1])
    assert (len(test), test.root) == (2, tmp_path / "test")
    assert (len(val), val.root) == (4, tmp_path / "val")
    assert train.names[4] == "b/001.png"


def test_a_plain_folder_of_classes_is_taken_as_it_is(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 1, "b": 1})

    assert len(open_dataset(str(tmp_path), "test", tmp_path)) == 2


def opened(data: Path, split: Split = "train") -> tuple[LabelledImages, str]:
    """The set and what was said of it."""
    said: list[str] = []
    return open_dataset(str(data), split, data.parent, say=said.append), "\n".join(said)


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("class-train", ("bus", "train"), 6),
        ("lone-folder", ("cat", "dog"), 6),
        ("macosx-eadir", ("cat", "dog"), 6),
        ("training-validation", ("cat", "dog"), 6),
    ],
)
def test_what_people_reported_is_read_as_they_meant_it(
    tmp_path: Path, name: str, classes: tuple[str, ...], count: int, kind: str
) -> None:
    place = test_data(f"faults-inputs/unpack-{name}.tar")
    if kind == "folder":
        with tarfile.open(place) as archive:
            archive.extractall(tmp_path, filter="data")
        place = tmp_path / "data"

    (train, said), (test, _) = opened(place, "train"), opened(place, "test")

    assert train.classes == test.classes == classes
    assert len(train) == len(test) == count
    assert (train.root == test.root) == (name != "training-validation")
    assert ("`@eaDir`" in said and "1 `__MACOSX`" in said) == (name == "macosx-eadir")
    assert said.count("\n") == 0


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("val", ["val", "Valid", "validation", "DEV"])
@pytest.mark.parametrize("test", ["test", "Testing"])
def test_parts_have_many_names_in_any_case(tmp_path: Path, train: str, val: str, test: str) -> None:
    for number, part in enumerate((train, val, test), start=1):
        class_folders(tmp_path / part, {"a": number, "b": number})

    training, said = opened(tmp_path, "train")
    evaluated, beside = opened(tmp_path, "test")
    validation = open_given(str(tmp_path), "val", training)

    assert (len(training), len(evaluated)) == (2, 4)
    assert validation is not None and validation.root == evaluated.root == tmp_path / val
    assert said == f"not used: `{test}` beside `{tmp_path / train}`"
    assert beside == f"not used: `{test}` beside `{tmp_path / val}`; --split test takes `{test}`"


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_the_test_part_is_measured_where_it_is_asked_for(cvt, tmp_path: Path, kind: str) -> None:
    for part, count in (("train", 3), ("valid", 2), ("Testing", 1)):
        class_folders(tmp_path / "data" / part, {"cat": count, "dog": count})
    place = tmp_path / "data"
    if kind == "zip":
        place = Path(shutil.make_archive(str(place), "zip", place))
    nano = ("--model", "cvt-nano-cifar10", "--json")

    by_default = cvt("evaluate", place, *nano)
    asked = cvt("evaluate", place, *nano, "--split", "test")
    shutil.rmtree(tmp_path / "data" / "Testing")
    without = cvt("evaluate", tmp_path / "data", *nano, "--split", "test")

    assert (by_default.json["n"], by_default.json["split"]) == (4, None)
    assert "--split test takes `Testing`" in by_default.stderr
    assert (asked.json["n"], asked.json["split"]) == (2, "test")
    assert without.exit_code == 1
    assert f"`{tmp_path / 'data'}` has `train` and `valid` but no part `test`" in without.stderr


def test_of_two_folders_for_a_part_the_usual_one_is_taken_and_the_other_named(
    tmp_path: Path,
) -> None:
    for part in ("train", "val", "valid", "extra"):
        class_folders(tmp_path / part, {"a": 1, "b": 1})
    class_folders(tmp_path / "empty", {"a": 0})
    Image.new("RGB", (8, 8)).save(tmp_path / "stray.png")

    data, said = opened(tmp_path, "test")

    assert data.root == tmp_path / "val"
    assert said == f"not used: `extra`, `valid`, 1 image beside `{tmp_path / 'val'}`"


def test_a_class_may_be_called_like_a_part(tmp_path: Path) -> None:
    class_folders(tmp_path / "flat", {"bus": 2, "train": 3, "test": 4, "val": 1})
    class_folders(tmp_path / "parts" / "train", {"bus": 2, "train": 3})
    class_folders(tmp_path / "parts" / "val", {"bus": 1, "train": 1})
    # Of a class some images lie deeper.
    class_folders(tmp_path / "deeper", {"bus": 2, "train": 2})
    class_folders(tmp_path / "deeper" / "train", {"old": 1})

    for split in ("train", "test"):
        assert opened(tmp_path / "flat", split)[0].classes == ("bus", "test", "train", "val")
        assert opened(tmp_path / "parts", split)[0].classes == ("bus", "train")
        deeper = opened(tmp_path / "deeper", split)[0]
        assert (deeper.classes, len(deeper)) == (("bus", "train"), 5)
    assert opened(tmp_path / "parts", "test")[0].root == tmp_path / "parts" / "val"


def test_a_stray_picture_in_a_part_does_not_make_it_a_class(tmp_path: Path) -> None:
    for part in ("train", "val"):
        class_folders(tmp_path / part, {"a": 2, "b": 2})
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "stray.png")

    data, said = opened(tmp_path, "train")

    assert (data.classes, len(data)) == (("a", "b"), 4)
    assert said == f"not used: 1 image beside the class folders in `{tmp_path / 'train'}`"


def test_a_part_that_is_missing_is_asked_for(tmp_path: Path) -> None:
    class_folders(tmp_path / "Validation", {"a": 1, "b": 1})

    with pytest.raises(DataError, match="has `Validation` but no `train` to train on") as caught:
        opened(tmp_path, "train")

    assert caught.value.hint == f"name the folder itself: {tmp_path / 'Validation'}"


def test_folders_without_images_are_no_classes_and_named(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 2, "b": 2, "empty": 0, "#recycle": 3})
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "1.heif").write_bytes(b"")
    (tmp_path / "phone" / "1.psd").write_bytes(b"")
    finding.reads_heif.cache_clear()

    data, said = opened(tmp_path)

    first, second = said.splitlines()
    assert data.classes == ("a", "b") + (("phone",) if finding.reads_heif() else ())
    assert first.startswith("skipped: ") and "`empty`" in first
    assert "1 .psd" in second and "1 `#recycle`" in second


@pytest.mark.parametrize("inside", ["", "train"])
def test_one_folder_too_many_is_entered(tmp_path: Path, inside: str) -> None:
    class_folders(tmp_path / inside / "set" / "more", {"a": 2, "b": 2})
    (tmp_path / inside / "README.md").write_text("about")

    data, said = opened(tmp_path)

    assert (data.root, data.classes) == (tmp_path / inside / "set" / "more", ("a", "b"))
    assert said == ""


def test_a_lone_class_stays_one_and_is_not_trained_on(tmp_path: Path, cvt) -> None:
    class_folders(tmp_path / "flat", {"a": 3})
    class_folders(tmp_path / "tiny" / "n01" / "images", {".": 3})

    for place, name in (("flat", "a"), ("tiny", "n01")):
        data, said = opened(tmp_path / place, "test")
        assert data.classes == (name,)
        assert said == f"`{tmp_path / place}` holds only one class, `{name}`"
    result = cvt("finetune", "--data", tmp_path / "flat", "--model", "cvt-nano-cifar10")

    assert result.exit_code == 1
    assert f"there is only one class, `a`, in `{tmp_path / 'flat'}`" in result.stderr


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "no images in class folders below"),
        (lambda root: (root / "x.txt").write_text(""), "no images in class folders below"),
        (lambda root: class_folders(root / "train", {"a": 1}), "has `train` but neither `val`"),
    ],
    ids=["empty", "no folders", "train only"],
)
def test_a_folder_that_cannot_be_understood_is_refused(tmp_path: Path, make, message: str) -> None:
    make(tmp_path)

    with pytest.raises(DataError, match=message) as caught:
        open_dataset(str(tmp_path), "test", tmp_path)

    assert caught.value.hint
