"""Class folders, parts and CIFAR's own files, split and matched by name."""

import json
import pickle
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvt_cli.base.errors import DataError
from cvt_cli.datasets.labelled import (
    LabelledImages,
    Split,
    match_classes,
    open_dataset,
    open_validation,
)
from cvt_cli.images import decode
from cvt_cli.spec.labels import Labels, imagenet
from tests_shared import test_data


def class_folders(root: Path, counts: dict[str, int]) -> Path:
    """Small images, each of one grey that tells which it is."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (32, 32), (number,) * 3).save(root / name / f"{number:03}.png")
    return root


def write_cifar10(root: Path, protocol: int = 2) -> Path:
    """Files as torchvision finds them after a download, with few images."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"class{label}" for label in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol))
    for file in [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]:
        data = np.arange(4 * 3072, dtype=np.uint32).astype(np.uint8).reshape(4, 3072)
        batch = {"data": data, "labels": [3, 1, 4, 1]}
        (folder / file).write_bytes(pickle.dumps(batch, protocol))
    return folder


def write_cifar100(root: Path) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    names = [f"class{label}" for label in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, 2))
    for file, count in (("train", 6), ("test", 2)):
        data = np.zeros((count, 3072), dtype=np.uint8)
        batch = {"data": data, "fine_labels": [99] * count}
        (folder / file).write_bytes(pickle.dumps(batch, 2))


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


# --- parts, classes, and what lies beside them


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
    validation = open_validation(str(tmp_path), training)

    assert (len(training), len(evaluated)) == (2, 4)
    assert validation is not None and validation.root == evaluated.root == tmp_path / val
    assert said == f"not used: `{test}` beside `{tmp_path / train}`"
    assert beside == f"not used: `{test}` beside `{tmp_path / val}`"


def test_of_two_folders_for_a_part_the_usual_one_is_taken_and_the_other_named(
    tmp_path: Path,
) -> None:
    for part in ("train", "val", "valid", "extra"):
        class_folders(tmp_path / part, {"a": 1, "b": 1})
    class_folders(tmp_path / "empty", {"a": 0})
    Image.new("RGB", (8, 8)).save(tmp_path / "stray.png")

    data, said = opened(tmp_path, "test")

    assert data.root == tmp_path / "val"
    assert said == f"not used: `extra`, `valid`, 1 images beside `{tmp_path / 'val'}`"


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
    assert said == f"not used: 1 images beside the class folders in `{tmp_path / 'train'}`"


def test_a_part_that_is_missing_is_asked_for(tmp_path: Path) -> None:
    class_folders(tmp_path / "Validation", {"a": 1, "b": 1})

    with pytest.raises(DataError, match="has `Validation` but no `train` to train on") as caught:
        opened(tmp_path, "train")

    assert caught.value.hint == f"name the folder itself: --data {tmp_path / 'Validation'}"


def test_folders_without_images_are_no_classes_and_named(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 2, "b": 2, "empty": 0, "#recycle": 3})
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "1.heif").write_bytes(b"")
    (tmp_path / "phone" / "1.psd").write_bytes(b"")
    decode._reads_heif.cache_clear()

    data, said = opened(tmp_path)

    first, second = said.splitlines()
    assert data.classes == ("a", "b") + (("phone",) if decode._reads_heif() else ())
    assert first.startswith("passed over: ") and "`empty`" in first
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
        assert said == f"`{tmp_path / place}` holds one class alone, `{name}`"
    result = cvt("finetune", "--data", tmp_path / "flat", "--model", "cvt-nano-cifar10")

    assert result.exit_code == 1
    assert f"there is one class alone, `a`, in `{tmp_path / 'flat'}`" in result.stderr


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar10_is_read_as_torchvision_lays_it_out(tmp_path: Path, protocol: int) -> None:
    write_cifar10(tmp_path, protocol)

    train = open_dataset("cifar10", "train", tmp_path)
    test = open_dataset(str(tmp_path), "test", tmp_path)

    assert len(train) == 20 and len(test) == 4
    assert test.classes[3] == "class3" and test.labels.tolist() == [3, 1, 4, 1]
    # The first pixel is (0, 1024, 2048) modulo 256: planes, not interleaved.
    array = np.asarray(test.load(0, exif=False))
    assert array.shape == (32, 32, 3)
    assert array[0, 1].tolist() == [1, 1, 1] and array[1, 0].tolist() == [32, 32, 32]


def test_cifar100_is_read_as_torchvision_lays_it_out(tmp_path: Path) -> None:
    write_cifar100(tmp_path)

    assert len(open_dataset("cifar100", "train", tmp_path)) == 6
    assert open_dataset("cifar100", "test", tmp_path).labels.tolist() == [99, 99]


def test_a_pickle_that_asks_for_more_than_arrays_is_not_run(tmp_path: Path, monkeypatch) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (Path("executed"),))

    folder = write_cifar10(tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": Evil()}))
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DataError, match="nothing was run: asks for"):
        open_dataset("cifar10", "test", tmp_path)

    assert not (tmp_path / "executed").exists()


def test_a_known_name_wins_over_a_folder_unless_written_as_a_path(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path / "cifar10", {"mine": 2})
    class_folders(tmp_path / "kept" / "cifar10" / "test", {"cat": 1})

    assert open_dataset("cifar10", "test", tmp_path / "kept").classes == ("cat",)
    assert open_dataset("./cifar10", "test", tmp_path / "kept").classes == ("mine",)


def test_the_split_is_stratified_and_drawn_by_the_seed(tmp_path: Path) -> None:
    data = open_dataset(str(class_folders(tmp_path, {"a": 40, "b": 10})), "train", tmp_path)

    rest, aside = data.split(0.1, seed=0)

    assert np.bincount(aside.labels).tolist() == [4, 1]
    assert sorted(rest.names + aside.names) == sorted(data.names)
    assert data.split(0.1, seed=0)[1].names == aside.names
    assert data.split(0.1, seed=1)[1].names != aside.names


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


def test_a_known_set_that_is_not_there_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="looked for the folders `cifar10` and `cifar-10-batches"):
        open_dataset("cifar10", "test", tmp_path)
    with pytest.raises(DataError, match="does not exist; accepted are a folder"):
        open_dataset(str(tmp_path / "none"), "test", tmp_path)


def test_classes_are_matched_by_name_and_never_by_order() -> None:
    numbers = Labels(("0", "1", "10", "2"))

    assert match_classes(("0", "1", "2", "10"), numbers)[0].tolist() == [0, 1, 3, 2]


def test_imagenet_classes_are_matched_by_wnid_or_number() -> None:
    by_wnid, how = match_classes(("n01443537", "n02123045"), imagenet())
    assert (by_wnid.tolist(), how) == ([1, 281], "WordNet identifiers")
    by_number, how = match_classes(("10", "2"), imagenet())
    assert (by_number.tolist(), how) == ([10, 2], "class numbers")


def test_twenty_thousand_classes_are_matched_at_once(tmp_path: Path) -> None:
    names = tuple(f"class {number}" for number in range(21_841))
    (tmp_path / "map.json").write_text(json.dumps(dict(zip(names, names[::-1], strict=True))))
    started = time.process_time()

    index, _ = match_classes(names[::-1], Labels(names))
    mapped, _ = match_classes(names, Labels(names), tmp_path / "map.json")

    assert time.process_time() - started < 1  # it took 13 s
    assert index.tolist() == mapped.tolist() == list(range(21_841))[::-1]


def test_unknown_classes_are_refused_and_named() -> None:
    with pytest.raises(DataError, match="1 of 2 classes of the data are not among the model's 2"):
        match_classes(("a", "c"), Labels(("a", "b")))
    with pytest.raises(DataError, match="names more than one class"):
        match_classes(("crane",), Labels(("crane", "crane")))
