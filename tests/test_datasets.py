"""Class folders and CIFAR's own files, split and matched by name."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvt_cli.datasets import match_classes, open_dataset
from cvt_cli.errors import DataError
from cvt_cli.labels import Labels, imagenet


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


def test_unknown_classes_are_refused_and_named() -> None:
    with pytest.raises(DataError, match="1 of 2 classes of the data are not among the model's 2"):
        match_classes(("a", "c"), Labels(("a", "b")))
    with pytest.raises(DataError, match="names more than one class"):
        match_classes(("crane",), Labels(("crane", "crane")))
