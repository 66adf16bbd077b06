"""The parts of a set, lone folders around it, and class folders."""

import shlex
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
    (tmp_path / "test.zip").write_bytes(b"")
    (tmp_path / "val" / "c.tar").write_bytes(b"")
    class_folders(tmp_path / "empty", {"a": 0})
    Image.new("RGB", (8, 8)).save(tmp_path / "stray.png")

    data, said = opened(tmp_path, "test")

    assert data.root == tmp_path / "val"
    skipped = "skipped: archives, which are read only where they are named themselves"
    assert said.splitlines() == [
        f"{skipped} (1 .zip), in `{tmp_path}`",
        f"not used: `extra`, `valid`, 1 image beside `{tmp_path / 'val'}`",
        f"{skipped} (1 .tar), in `{tmp_path / 'val'}`",
    ]


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
    for name in ("1.psd", "1.dcm", "2.dcm"):
        (tmp_path / "phone" / name).write_bytes(b"")
    finding.reads_heif.cache_clear()

    data, said = opened(tmp_path)

    first, second = said.splitlines()
    assert data.classes == ("a", "b") + (("phone",) if finding.reads_heif() else ())
    assert first.startswith("skipped: ") and "`empty`" in first
    assert "2 .dcm" in second and "1 .psd" in second and "1 `#recycle`" in second


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


@pytest.mark.parametrize(
    ("parts", "doubled"),
    [
        (("seg_pred", "seg_test", "seg_train"), True),
        (("training_set", "test_set"), False),
        (("Train data", "Test data"), False),
        (("train_80", "val_20"), False),
        (("fold_1", "fold_2", "fold_3"), False),
    ],
)
def test_parts_by_other_names_are_not_trained_on_as_classes(
    cvt, tmp_path: Path, parts: tuple[str, ...], doubled: bool
) -> None:
    for name in parts:
        place = tmp_path / name / name if doubled else tmp_path / name
        class_folders(place, {} if name == "seg_pred" else {"a": 3, "b": 3})
        if name == "seg_pred":
            place.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(place / "1.png")

    result = cvt("finetune", tmp_path, "--variant", "nano", "--dry-run")
    first = next((name for name in parts if "train" in name.lower()), parts[0])
    alone = cvt("finetune", tmp_path / first, "--variant", "nano", "--dry-run")

    assert result.exit_code == 1
    assert "look like parts of a set, not like classes" in result.stderr
    assert f"name one of them, such as {shlex.quote(str(tmp_path / first))}" in result.stderr
    assert alone.exit_code == 0 and "in 2 classes" in alone.stderr


def test_classes_may_have_folders_of_one_name_and_names_like_parts(tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        class_folders(tmp_path / "a" / kind, {"day": 1, "night": 1})
        class_folders(tmp_path / "b" / kind, {"images": 1})
    for kind in ("test strip", "test tube"):
        class_folders(tmp_path / "c", {kind: 1})
    class_folders(tmp_path / "d", {"part_1": 2, "part_2": 2})

    read = {name: opened(tmp_path / name) for name in "abcd"}

    assert read["a"][0].classes == read["b"][0].classes == ("cat", "dog")
    assert read["c"][0].classes == ("test strip", "test tube")
    assert "`cat`, `dog` in" in read["a"][1] and "all hold the same folders" in read["a"][1]
    assert "same folders" not in read["b"][1] + read["c"][1]
    assert read["d"][1].endswith("differ in numbers alone; they are taken as the classes")


def test_parts_without_class_folders_are_not_classes_and_their_tables_are_named(
    cvt, tmp_path: Path
) -> None:
    class_folders(tmp_path, {"train": 3, "valid": 2})

    bare = cvt("finetune", tmp_path, "--variant", "nano", "--dry-run")
    (tmp_path / "train" / "_classes.csv").write_text("filename,a,b\n000.png,1,0\n001.png,0,1\n")
    with_table = cvt("finetune", tmp_path, "--variant", "nano", "--dry-run")

    for result in (bare, with_table):
        assert result.exit_code == 1
        assert "they have the names of parts, and hold images and no class" in result.stderr
    table = tmp_path / "train" / "_classes.csv"
    assert f"if a table has the classes, name it: {table}" in with_table.stderr


@pytest.mark.parametrize(
    ("folders", "suffix", "why"),
    [
        (("train_images", "test_images"), ".png", "have the names of parts"),
        (("train", "test1"), "", "have the names of parts"),
        (("HAM_images_part_1", "HAM_images_part_2"), "", "differ in numbers alone, and a table"),
    ],
)
def test_parts_of_a_set_are_not_trained_on_where_a_table_beside_them_has_its_classes(
    cvt, tmp_path: Path, folders: tuple[str, str], suffix: str, why: str
) -> None:
    class_folders(tmp_path, dict.fromkeys(folders, 3))
    rows = []
    for folder in folders:
        for number, file in enumerate(sorted((tmp_path / folder).iterdir())):
            rows.append(f"{folder}_{number}")
            file.rename(file.with_name(f"{rows[-1]}.png"))
    known = rows if "_1" in folders[0] else rows[:3]
    lines = [f"{row}{suffix},{number % 2}\n" for number, row in enumerate(known)]
    (tmp_path / "train.csv").write_text("image_id,dx\n" + "".join(lines))
    (tmp_path / "sample_submission.csv").write_text(f"image_id,dx\n{rows[-1]}{suffix},0\n")

    result = cvt("finetune", tmp_path, "--variant", "nano", "--dry-run")

    assert result.exit_code == 1
    assert f"like parts of a set, not like classes: they {why}" in result.stderr
    assert f"if a table has the classes, name it: {tmp_path / 'train.csv'}\n" in result.stderr


def test_a_table_beside_class_folders_is_said_to_be_unused(tmp_path: Path) -> None:
    class_folders(tmp_path / "level" / "train", {"img_1": 3, "img_2": 3})
    table, names = tmp_path / "level" / "a.csv", [f"img_{n % 2 + 1}/00{n // 2}" for n in range(6)]
    wrong = [f"{name}.png,{n % 3}\n" for n, name in enumerate(names)]
    right = [f"data/{name}.png,{n % 2}\n" for n, name in enumerate(names)]

    said = []
    for place, lines in (
        (table, ["file,severity\n", *right]),  # what the folders say too
        (table.parent / "train" / "a.csv", ["group,note\n", *wrong]),
        (table.parent / "train" / "a.csv", ["file,note\n", "not a row\n"]),
    ):
        place.write_text("".join(lines))
        said.append(opened(tmp_path / "level")[1].splitlines()[1:])
    class_folders(tmp_path / "level" / "train", {"cat": 1})
    table.write_text("file,severity\n" + "".join(wrong))
    said.append(opened(tmp_path / "level")[1].splitlines())

    unused = f"not used for the classes of the folders in `{table.parent / 'train'}`: "
    beside = unused + f"`{table.parent / 'train' / 'a.csv'}`"
    assert said[:3] == [[], [beside], [beside]]
    assert said[3] == [
        f"{unused}`{table}`, which names images there; if it has their classes, name the table"
    ]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_part_with_one_folder_too_many_is_entered(tmp_path: Path, kind: str) -> None:
    for part in ("train", "test"):
        class_folders(tmp_path / "d" / part / part, {"a": 2, "b": 2})
    data = tmp_path / "d"
    if kind == "zip":
        data = Path(shutil.make_archive(str(data), "zip", data))

    for split in ("train", "test"):
        images, _ = opened(data, split)
        assert images.classes == ("a", "b") and len(images) == 4


def test_where_the_classes_may_be_a_folder_below_that_folder_is_named(cvt, tmp_path: Path) -> None:
    class_folders(tmp_path / "images", {"a": 2, "b": 2})
    (tmp_path / "labels.csv").write_text("name,what\n")

    result = cvt("finetune", tmp_path, "--variant", "nano", "--dry-run")

    assert result.exit_code == 1
    assert f"if the folders in `{tmp_path / 'images'}` are the classes, name that" in result.stderr
